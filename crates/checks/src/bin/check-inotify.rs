//! See `checks::check_inotify`.

use std::process::ExitCode;

fn main() -> ExitCode {
    checks::check_inotify()
}
