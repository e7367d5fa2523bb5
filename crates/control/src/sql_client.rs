//! MariaDB's own client programs: they take the password from a file that only root can read.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use process::Program;
use settings::{Settings, SettingsError};

use crate::path_error::{PathError, at, remove};

/// Why no credentials could be given.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The password of the toolkit's account.
    #[error(transparent)]
    Password(#[from] SettingsError),
    /// The file.
    #[error(transparent)]
    File(#[from] PathError),
}

/// A file with the toolkit's account and socket; removed when dropped.
#[derive(Debug)]
pub struct Credentials {
    path: PathBuf,
}

impl Credentials {
    /// Writes it into the run directory; `purpose` keeps two programs apart.
    pub fn write(settings: &Settings, purpose: &str) -> Result<Self, CredentialsError> {
        let account = &settings.database.account;
        let password = account.password()?;
        let quoted = password.reveal().replace('\\', "\\\\").replace('"', "\\\"");
        let path = settings.paths.run.join(format!("{purpose}.cnf"));
        // One that a killed run left may have other permissions.
        remove(&path)?;
        let made = Self { path };
        OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&made.path)
            .and_then(|mut file| {
                write!(
                    file,
                    "[client]\nuser = {}\npassword = \"{quoted}\"\nsocket = \"{}\"\n",
                    account.user,
                    settings.database.socket.display()
                )
            })
            .map_err(at(&made.path))?;
        Ok(made)
    }

    /// The client, which executes the file of statements and stops at the first error. What a peer has sent may be among
    /// them: it runs no command, and reads no file of this node. The sessions of the
    /// toolkit keep out of the binlog, and so does this when `log` is false.
    pub fn execute(&self, statements: &Path, log: bool) -> Program {
        let mut client = Program::new("mariadb")
            .arg(format!("--defaults-file={}", self.path.display()))
            .args(["--binary-mode", "--local-infile=0"])
            .stdin_from(statements);
        if !log {
            client = client.arg("--init-command=SET SESSION sql_log_bin = 0");
        }
        client
    }

    /// A program that also reads the server's own configuration.
    pub fn beside_server(&self, program: &str) -> Program {
        // Accepted in the first place only.
        Program::new(program).arg(format!("--defaults-extra-file={}", self.path.display()))
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
