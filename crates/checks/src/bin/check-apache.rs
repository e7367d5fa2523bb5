//! See `checks::check_apache`.

use std::process::ExitCode;

fn main() -> ExitCode {
    checks::check_apache()
}
