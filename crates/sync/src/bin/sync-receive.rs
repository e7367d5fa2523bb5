//! The forced command that takes files.

fn main() -> std::process::ExitCode {
    sync::receive()
}
