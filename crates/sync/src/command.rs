//! What a sender may ask of the forced command over ssh: one of two lines, with a checked list of
//! rsync's arguments in the second. Pure.

use std::path::{Path, PathBuf};

/// A request, as ssh passes it in `SSH_ORIGINAL_COMMAND`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `session`: the conversation of [`crate::session`].
    Session,
    /// `stream EPOCH NODE --server ... . ROOT/`: rsync's receiving side.
    Stream(Stream),
}

/// A stream of files from a sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// The sender's epoch.
    pub epoch: u64,
    /// The sender.
    pub from: String,
    /// The tree that it goes to.
    pub root: PathBuf,
    /// rsync's arguments, from `--server` to before the `.`.
    pub arguments: Vec<String>,
    /// It only compares (`-n`).
    pub compares: bool,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused: {0}")]
pub struct Refused(String);

/// Options that the sending side of this program uses, as rsync 3.2 to 3.5 hands them on. Nothing that
/// reads (`--sender`), names another place (`--backup-dir`, `--log-file`, `--link-dest`, ...) or runs
/// anything is among them.
const LONG: [&str; 14] = [
    "--force",
    "--delete-missing-args",
    "--numeric-ids",
    "--delete",
    "--delete-during",
    "--delete-before",
    "--delete-delay",
    "--delete-after",
    "--ignore-errors",
    "--no-r",
    "--no-recursive",
    "--ignore-existing",
    "--existing",
    // What --out-format becomes on the way.
    "--log-format=%i",
];
const LONG_WITH_VALUE: [&str; 5] = [
    "--usermap=",
    "--groupmap=",
    "--timeout=",
    "--modify-window=",
    "--max-delete=",
];
/// Letters of a cluster before the `e.` of the capabilities: links, owner, group, devices, times,
/// permissions, hard links, relative names, recursion, dry run, directories, itemise, verbose, checksums,
/// ignored times, ACLs, extended attributes, holes.
const SHORT: &str = "logDtpHRrndivxcIAXS";

/// Reads a request.
pub fn parse(line: &str, trees: &[&Path]) -> Result<Command, Refused> {
    let words = split(line)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["session"] => Ok(Command::Session),
        ["stream", epoch, from, "--server", arguments @ .., ".", root] => {
            let epoch = epoch
                .parse()
                .map_err(|_| Refused(format!("`{epoch}` is not an epoch")))?;
            let root = trees
                .iter()
                .find(|tree| root.strip_suffix('/') == tree.to_str())
                .ok_or_else(|| Refused(format!("{root} is not a tree of the settings here")))?;
            let mut compares = false;
            for argument in arguments {
                check(argument)?;
                compares |= cluster(argument).is_some_and(|letters| letters.contains('n'));
            }
            Ok(Command::Stream(Stream {
                epoch,
                from: (*from).to_owned(),
                root: (*root).to_owned(),
                arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
                compares,
            }))
        }
        _ => Err(Refused(
            "expected `session` or `stream EPOCH NODE --server ... . TREE/`".to_owned(),
        )),
    }
}

/// The letters of a cluster of short options, without the capabilities.
fn cluster(argument: &str) -> Option<&str> {
    let letters = argument.strip_prefix('-')?;
    if letters.starts_with('-') || letters.starts_with('@') {
        return None;
    }
    // `e.` is followed by what the client can do, in letters.
    Some(
        letters
            .split_once("e.")
            .map_or(letters, |(before, _)| before),
    )
}

fn check(argument: &str) -> Result<(), Refused> {
    let refused = || Refused(format!("rsync's argument `{argument}` is not allowed"));
    if LONG.contains(&argument) {
        return Ok(());
    }
    if let Some((_, value)) = LONG_WITH_VALUE
        .iter()
        .find_map(|name| Some((name, argument.strip_prefix(name)?)))
    {
        let harmless =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '*' | ':' | '_' | '-' | '.');
        return if value.chars().all(harmless) {
            Ok(())
        } else {
            Err(refused())
        };
    }
    // The short form of --modify-window.
    if let Some(value) = argument.strip_prefix("-@") {
        return value.parse::<i32>().map(drop).map_err(|_| refused());
    }
    let letters = cluster(argument).ok_or_else(refused)?;
    let capabilities = argument.split_once("e.").map_or("", |(_, after)| after);
    if !letters.is_empty()
        && letters.chars().all(|c| SHORT.contains(c))
        && capabilities.chars().all(|c| c.is_ascii_alphabetic())
    {
        Ok(())
    } else {
        Err(refused())
    }
}

/// Splits the line as the shell that is not there would: rsync escapes with backslashes only.
fn split(line: &str) -> Result<Vec<String>, Refused> {
    let mut words = vec![String::new()];
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match c {
            ' ' => words.push(String::new()),
            '\\' => {
                let next = characters
                    .next()
                    .ok_or_else(|| Refused("a backslash at the end".to_owned()))?;
                if let Some(word) = words.last_mut() {
                    word.push(next);
                }
            }
            '\'' | '"' | '`' | '$' | ';' | '&' | '|' | '<' | '>' | '(' | ')' | '\n' => {
                return Err(Refused(format!("`{c}` in the command")));
            }
            other => {
                if let Some(word) = words.last_mut() {
                    word.push(other);
                }
            }
        }
    }
    words.retain(|word| !word.is_empty());
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "/var/www/html";

    fn parsed(line: &str) -> Result<Command, Refused> {
        parse(line, &[Path::new("/srv/other"), Path::new(ROOT)])
    }

    #[test]
    fn what_rsync_3_5_sends_is_accepted() {
        // Recorded from rsync 3.5.0 with this program's own options.
        let line = "stream 7 node1 --server -lHogDtpRce.LsfxCIvu --force --delete-missing-args -@-1 --numeric-ids \
                    --usermap=\\*:www-data --groupmap=\\*:www-data . /var/www/html/";
        let Ok(Command::Stream(stream)) = parsed(line) else {
            panic!("{:?}", parsed(line));
        };
        assert_eq!((stream.epoch, stream.from.as_str()), (7, "node1"));
        assert_eq!(stream.root, Path::new(ROOT));
        assert!(!stream.compares);
        assert_eq!(stream.arguments[5], "--usermap=*:www-data");
        let attributes = "stream 7 node1 --server -lHogDtpAXRSce.LsfxCIvu --force --delete-missing-args -@-1 \
                          --numeric-ids . /var/www/html/";
        assert!(parsed(attributes).is_ok());
        let compare = "stream 7 node1 --server -nlHogDtpre.LsfxCIvu --log-format=%i --delete-during -@-1 --numeric-ids . /var/www/html/";
        assert!(matches!(parsed(compare), Ok(Command::Stream(s)) if s.compares));
        assert_eq!(parsed("session"), Ok(Command::Session));
    }

    #[test]
    fn everything_else_is_refused() {
        let stream =
            |arguments: &str, root: &str| format!("stream 7 node1 --server {arguments} . {root}");
        for line in [
            String::new(),
            "sh".to_owned(),
            "session x".to_owned(),
            "session; id".to_owned(),
            "rsync --server -lt . /var/www/html/".to_owned(),
            "stream x node1 --server -lt . /var/www/html/".to_owned(),
            stream("--sender -lt", "/var/www/html/"),
            stream("-lt --backup-dir=/etc", "/var/www/html/"),
            stream("-lt --backup-dir /etc", "/var/www/html/"),
            stream("-lt --log-file=/etc/cron.d/x", "/var/www/html/"),
            stream("-lt --temp-dir=/etc", "/var/www/html/"),
            stream("-lt -T /etc", "/var/www/html/"),
            stream("-lt --config=/x", "/var/www/html/"),
            stream("-lt --usermap=a/b", "/var/www/html/"),
            stream("-ltM--daemon", "/var/www/html/"),
            stream("-lt -e.LsfxCIvu/x", "/var/www/html/"),
            stream("-lt -esh", "/var/www/html/"),
            stream("-lt", "/"),
            stream("-lt", "/var/www/html/../"),
            stream("-lt", "/var/www/html"),
            stream("-lt", "/var/www/html/ /etc/"),
            stream("-lt . /etc/", "/var/www/html/"),
            stream("-lt $(id)", "/var/www/html/"),
            stream("-lt \\", "/var/www/html/"),
        ] {
            assert!(parsed(&line).is_err(), "accepted: {line}");
        }
    }
}
