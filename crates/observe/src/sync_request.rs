//! One question to sync-realtime over its socket.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use settings::Settings;

/// Longest answer that is read, in bytes.
const ANSWER_CAP: usize = 64 * 1024;

/// Sends one request to sync-realtime, a line or bytes that end with a NUL (`wait0`), and returns the line that it answers. All of it ends within
/// `timeout`. `NotFound` and `ConnectionRefused` mean that no sync-realtime runs here.
pub fn sync_request(
    settings: &Settings,
    request: impl AsRef<[u8]>,
    timeout: Duration,
) -> Result<String, io::Error> {
    ask(
        &nodefiles::sync_status::socket(settings),
        request.as_ref(),
        timeout,
    )
}

fn ask(path: &Path, request: &[u8], timeout: Duration) -> Result<String, io::Error> {
    let ended = request.ends_with(b"\0");
    if request.contains(&b'\n') && !ended {
        return Err(failed(
            ErrorKind::InvalidInput,
            "a request is a single line",
        ));
    }
    let deadline = Instant::now() + timeout;
    let mut stream = open(path, remaining(deadline)?)?;
    stream.set_write_timeout(Some(remaining(deadline)?))?;
    let end: &[u8] = if ended { b"" } else { b"\n" };
    stream
        .write_all(&[request, end].concat())
        .map_err(as_timeout)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        // What is left shrinks, or an answer that comes byte by byte would never be too late.
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        let count = match stream.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(as_timeout(error)),
        };
        if count == 0 {
            return Err(failed(
                ErrorKind::UnexpectedEof,
                "sync-realtime hung up before it had answered",
            ));
        }
        let searched = answer.len();
        answer.extend_from_slice(&buffer[..count]);
        if answer.len() > ANSWER_CAP {
            return Err(failed(
                ErrorKind::InvalidData,
                "sync-realtime answered with more than 64 KiB",
            ));
        }
        if let Some(end) = answer[searched..].iter().position(|byte| *byte == b'\n') {
            answer.truncate(searched + end);
            return String::from_utf8(answer)
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, error));
        }
    }
}

/// `UnixStream::connect` would wait for ever for a daemon that is stopped and whose backlog is full.
fn open(path: &Path, timeout: Duration) -> Result<UnixStream, io::Error> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    connect(&socket, &SocketAddrUnix::new(path)?).map_err(|error| as_timeout(error.into()))?;
    Ok(UnixStream::from(socket))
}

fn remaining(deadline: Instant) -> Result<Duration, io::Error> {
    Some(deadline.saturating_duration_since(Instant::now()))
        // Zero would mean no limit.
        .filter(|left| !left.is_zero())
        .ok_or_else(too_late)
}

/// The kernel's word for a socket's time that ran out is that it would block.
fn as_timeout(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock {
        too_late()
    } else {
        error
    }
}

fn too_late() -> io::Error {
    failed(
        ErrorKind::TimedOut,
        "sync-realtime did not answer within the time",
    )
}

fn failed(kind: ErrorKind, text: &'static str) -> io::Error {
    io::Error::new(kind, text)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::thread::{self, JoinHandle};

    use super::*;

    /// Long enough for a loaded machine; only tests of silence wait for their whole time.
    const PATIENT: Duration = Duration::from_secs(30);
    const IMPATIENT: Duration = Duration::from_millis(100);

    /// A sync-realtime that says `answer` to the first question, then keeps the connection until
    /// the other side hangs up. Its thread returns the question.
    fn answering(answer: Vec<u8>) -> (tempfile::TempDir, PathBuf, JoinHandle<String>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sync.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            reader.read_line(&mut question).unwrap();
            // The client may hang up in the middle of a long one.
            let _ = stream.write_all(&answer);
            let _ = reader.read_to_end(&mut Vec::new());
            question
        });
        (directory, path, served)
    }

    #[test]
    fn one_line_there_and_one_line_back() {
        let (_directory, path, served) = answering(b"behind 3\nand more".to_vec());
        assert_eq!(ask(&path, b"seal 500", PATIENT).unwrap(), "behind 3");
        assert_eq!(served.join().unwrap(), "seal 500\n");
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        for said in ["", "seal"] {
            let (_directory, path, served) = answering(said.into());
            let start = Instant::now();
            let error = ask(&path, b"probe", IMPATIENT).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            assert!(start.elapsed() >= IMPATIENT);
            served.join().unwrap();
        }
    }

    #[test]
    fn a_full_backlog_ends_at_the_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sync.sock");
        // Nobody accepts: connections wait in the backlog, as they do while the daemon is stopped.
        // UnixListener's own backlog has room for more connections than a process has files.
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match open(&path, IMPATIENT) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{}", waiting.len());
    }

    #[test]
    fn without_a_daemon_it_is_plain_that_there_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sync.sock");
        let kind = |path: &Path| ask(path, b"probe", PATIENT).unwrap_err().kind();
        assert_eq!(kind(&path), ErrorKind::NotFound);
        // A killed daemon leaves its socket behind.
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(kind(&path), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn an_answer_has_an_end() {
        let (_directory, path, served) = answering(vec![b'x'; ANSWER_CAP * 2]);
        let error = ask(&path, b"probe", PATIENT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        served.join().unwrap();
        let error = ask(&path, b"wait /a\nb", PATIENT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn a_daemon_that_hangs_up_has_not_answered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sync.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = String::new();
            BufReader::new(stream.try_clone().unwrap())
                .read_line(&mut question)
                .unwrap();
            stream.write_all(b"seal").unwrap();
        });
        let error = ask(&path, b"seal 500", PATIENT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        served.join().unwrap();
    }
}
