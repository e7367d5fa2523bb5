//! The VIP's address on this host.

use std::time::Duration;

use process::{ProcessError, Program};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use settings::Settings;

use crate::NotKnown;

/// Whether the VIP's address is on its interface, as the kernel lists it. An interface that does not exist has
/// none.
pub fn vip_present(settings: &Settings) -> Result<bool, NotKnown> {
    let interface = &settings.cluster.vip_interface;
    if !interface_exists(interface)? {
        return Ok(false);
    }
    present(list(settings))
}

fn present(listed: Result<String, ProcessError>) -> Result<bool, NotKnown> {
    match listed {
        Ok(text) => Ok(!text.is_empty()),
        Err(error) => Err(NotKnown::new("the VIP's address", error)),
    }
}

fn interface_exists(name: &str) -> Result<bool, NotKnown> {
    let failed = |error| NotKnown::new(name, error);
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed)?;
    match name_to_index(&socket, name) {
        Ok(_) => Ok(true),
        Err(Errno::NODEV) => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// What `ip` lists of the VIP on its interface.
pub(crate) fn list(settings: &Settings) -> Result<String, ProcessError> {
    Ok(Program::new("ip")
        .args([
            "-o",
            "address",
            "show",
            "dev",
            &settings.cluster.vip_interface,
            "to",
        ])
        .arg(settings.cluster.vip.to_string())
        .deadline(Duration::from_secs(1))
        .run()?
        .success()?
        .text())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::path::Path;

    use super::*;

    fn settings(interface: &str) -> Settings {
        let text = format!(
            "[cluster]\nvip = \"192.0.2.9\"\nvip_interface = \"{interface}\"\n\
             [[node]]\nname = \"a\"\nprivate = \"192.0.2.1\"\nfront = \"198.51.100.1\"\n\
             [[node]]\nname = \"b\"\nprivate = \"192.0.2.2\"\nfront = \"198.51.100.2\"\n"
        );
        settings::parse(&text, Path::new("test.toml"), Some("a")).unwrap()
    }

    #[test]
    fn an_interface_that_is_not_there_has_no_address() {
        assert_eq!(vip_present(&settings("none0")), Ok(false));
        assert!(interface_exists("lo").unwrap());
    }

    #[test]
    fn an_address_is_absent_only_when_the_kernel_says_so() {
        assert_eq!(
            present(Ok("7: eth0 inet 192.0.2.9/24".to_owned())),
            Ok(true)
        );
        assert_eq!(present(Ok(String::new())), Ok(false));
        let failed = Program::new("false").run().unwrap().success();
        assert!(present(failed.map(|_| String::new())).is_err());
        let late = Program::new("sleep")
            .arg("9")
            .deadline(Duration::from_millis(10))
            .run();
        assert!(present(late.map(|_| String::new())).is_err());
    }
}
