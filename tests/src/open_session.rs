//! A root session on a node's database that stays open.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use crate::{LabError, NodeName, at, node};

/// Ends when it is dropped.
#[derive(Debug)]
pub struct OpenSession(Child);

impl OpenSession {
    /// Opens one, which runs these statements.
    pub fn holding(node: NodeName, statements: &str) -> Result<Self, LabError> {
        let prefix = node::command_in(node)?;
        let child = Command::new(&prefix[0])
            .args(&prefix[1..])
            .args(["mariadb", "--unbuffered"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(at("mariadb"))?;
        let mut session = Self(child);
        session.run(statements)?;
        Ok(session)
    }

    /// Gives it statements more; it runs them one after another.
    pub fn run(&mut self, statements: &str) -> Result<(), LabError> {
        let Some(input) = &mut self.0.stdin else {
            return Err(LabError::Unfit("the session has no input".to_owned()));
        };
        writeln!(input, "{statements};")
            .and_then(|()| input.flush())
            .map_err(at("mariadb"))
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}
