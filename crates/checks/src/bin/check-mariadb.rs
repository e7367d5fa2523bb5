//! See `checks::check_mariadb`.

use std::process::ExitCode;

fn main() -> ExitCode {
    checks::check_mariadb()
}
