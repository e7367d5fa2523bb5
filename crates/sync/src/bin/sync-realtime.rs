//! The service that mirrors the trees.

fn main() -> std::process::ExitCode {
    sync::realtime()
}
