//! The image that both nodes share, built once and kept outside the repository.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use process::Program;
use rustix::fs::{FlockOperation, flock};

use crate::{CACHE, LabError, at, tell};

const PACKAGES: &str = "systemd,systemd-sysv,libpam-systemd,dbus,iproute2,iputils-ping,procps,keepalived,\
mariadb-server,mariadb-client,mariadb-backup,rsync,openssh-server,openssh-client,apache2,php,\
libapache2-mod-php,php-mysql,nftables,openssl,ca-certificates,curl,socat,logrotate,less,lsyncd,\
inotify-tools";
/// They stall the boot or reach for the network.
const MASKED: [&str; 5] = [
    "systemd-networkd-wait-online.service",
    "systemd-firstboot.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
];
/// Raised when the recipe below changes in another way than by its packages.
const RECIPE: u32 = 1;

/// A Debian release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    /// Debian 12
    Bookworm,
    /// Debian 13
    Trixie,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}

/// The image of a release, built when it is not there yet.
pub fn image(suite: Suite) -> Result<PathBuf, LabError> {
    let mut hasher = DefaultHasher::new();
    (PACKAGES, MASKED, RECIPE).hash(&mut hasher);
    let cache = Path::new(CACHE);
    let image = cache.join(format!("{}-{:016x}", suite.name(), hasher.finish()));
    fs::create_dir_all(cache).map_err(at(cache))?;
    let lock = fs::File::create(cache.join("lock")).map_err(at(cache))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| at(cache)(e.into()))?;
    if image.exists() {
        return Ok(image);
    }
    let building = image.with_extension("building");
    if building.exists() {
        fs::remove_dir_all(&building).map_err(at(&building))?;
    }
    tell(&format!(
        "building the image of {} (about a minute)",
        suite.name()
    ));
    let start = Instant::now();
    Program::new("mmdebstrap")
        .args([
            "--variant=minbase",
            "--quiet",
            "--include",
            PACKAGES,
            suite.name(),
        ])
        .arg(&building)
        .deadline(Duration::from_secs(1200))
        .run()?
        .success()?;
    fs::write(building.join("etc/machine-id"), "uninitialized\n").map_err(at(&building))?;
    for unit in MASKED {
        let link = building.join("etc/systemd/system").join(unit);
        if !link.is_symlink() {
            std::os::unix::fs::symlink("/dev/null", &link).map_err(at(&link))?;
        }
    }
    fs::rename(&building, &image).map_err(at(&image))?;
    tell(&format!("image built in {:.0?}", start.elapsed()));
    Ok(image)
}
