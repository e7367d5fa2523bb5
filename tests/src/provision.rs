//! Makes two nodes of the image: the toolkit through `scripts/install`, keys, certificates,
//! accounts. The secrets are generated anew for each lab.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use process::Program;

use crate::node::{exec, feed};
use crate::{LIVE, LabError, NodeName, at};

/// The repository this harness was built from.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn write(path: &Path, mode: u32, text: &str) -> Result<(), LabError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(at(parent))?;
    }
    fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(at(path))
}

fn openssl(words: &[&str]) -> Result<(), LabError> {
    Program::new("openssl").args(words).run()?.success()?;
    Ok(())
}

/// Secrets shared by both nodes, made once for each lab.
pub fn make_secrets() -> Result<PathBuf, LabError> {
    let keys = Path::new(LIVE).join("keys");
    if keys.join("complete").exists() {
        return Ok(keys);
    }
    fs::create_dir_all(&keys).map_err(at(&keys))?;
    let path = |name: &str| keys.join(name).to_string_lossy().into_owned();
    for account in [
        "keepalived_companion",
        "keepalived_probe",
        "keepalived_repl",
    ] {
        let password = Program::new("openssl")
            .args(["rand", "-hex", "24"])
            .run()?
            .success()?
            .text();
        write(&keys.join(account), 0o600, &format!("{password}\n"))?;
    }
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "3650",
        "-subj",
        "/CN=lab CA",
        "-keyout",
        &path("ca.key"),
        "-out",
        &path("ca.pem"),
    ])?;
    for node in NodeName::ALL {
        let extension = format!(
            "subjectAltName=DNS:{node},IP:{},IP:{}\n",
            node.private(),
            node.front()
        );
        write(&keys.join(format!("{node}.ext")), 0o600, &extension)?;
        let subject = format!("/CN={node}");
        openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            &subject,
            "-keyout",
            &path(&format!("{node}.key")),
            "-out",
            &path(&format!("{node}.csr")),
        ])?;
        openssl(&[
            "x509",
            "-req",
            "-in",
            &path(&format!("{node}.csr")),
            "-CA",
            &path("ca.pem"),
            "-CAkey",
            &path("ca.key"),
            "-CAcreateserial",
            "-days",
            "3650",
            "-extfile",
            &path(&format!("{node}.ext")),
            "-out",
            &path(&format!("{node}.pem")),
        ])?;
        for kind in ["host", "peer", "sync"] {
            let file = path(&format!("{node}.{kind}"));
            if !Path::new(&file).exists() {
                Program::new("ssh-keygen")
                    .args([
                        "-q",
                        "-t",
                        "ed25519",
                        "-N",
                        "",
                        "-C",
                        &format!("{kind}-{node}"),
                        "-f",
                        &file,
                    ])
                    .run()?
                    .success()?;
            }
        }
    }
    write(&keys.join("complete"), 0o600, "")?;
    Ok(keys)
}

fn read(path: &Path) -> Result<String, LabError> {
    fs::read_to_string(path).map_err(at(path))
}

/// What is installed on a node.
#[derive(Debug)]
pub struct Release {
    /// Its sources, with the files that are installed besides its programs.
    pub tree: PathBuf,
    /// Where its programs are.
    pub binaries: PathBuf,
}

/// Installs and configures the toolkit in the node's mounted tree.
pub fn furnish(
    node: NodeName,
    keys: &Path,
    advert_int: &str,
    release: &Release,
) -> Result<(), LabError> {
    let root = node.root();
    Program::new(release.tree.join("scripts/install"))
        .arg("--destdir")
        .arg(&root)
        .arg("--build-dir")
        .arg(&release.binaries)
        .run()?
        .success()?;
    let secrets = root.join("etc/keepalived/secrets");
    let mut known_hosts = Vec::new();
    let mut authorized = Vec::new();
    for other in NodeName::ALL {
        let host_key = read(&keys.join(format!("{other}.host.pub")))?;
        known_hosts.push(format!(
            "{other},{},{} {host_key}",
            other.private(),
            other.front()
        ));
        if other != node {
            for (key, program) in [("peer", "peer"), ("sync", "sync-receive")] {
                authorized.push(format!(
                    "restrict,from=\"{},{}\",command=\"/usr/libexec/keepalived-companion/{program}\" {}",
                    other.private(),
                    other.front(),
                    read(&keys.join(format!("{other}.{key}.pub")))?
                ));
            }
        }
    }
    for account in [
        "keepalived_companion",
        "keepalived_probe",
        "keepalived_repl",
    ] {
        write(&secrets.join(account), 0o600, &read(&keys.join(account))?)?;
    }
    write(&secrets.join("ca.pem"), 0o600, &read(&keys.join("ca.pem"))?)?;
    for key in ["peer", "sync"] {
        write(
            &secrets.join(format!("{key}_ed25519")),
            0o600,
            &read(&keys.join(format!("{node}.{key}")))?,
        )?;
    }
    write(&secrets.join("known_hosts"), 0o600, &known_hosts.concat())?;
    write(
        &root.join("root/.ssh/authorized_keys"),
        0o600,
        &authorized.concat(),
    )?;
    let ssh = root.join("etc/ssh");
    write(
        &ssh.join("ssh_host_ed25519_key"),
        0o600,
        &read(&keys.join(format!("{node}.host")))?,
    )?;
    write(
        &ssh.join("ssh_host_ed25519_key.pub"),
        0o644,
        &read(&keys.join(format!("{node}.host.pub")))?,
    )?;
    let tls = root.join("etc/mysql/tls");
    let (uid, gid) = user_ids(&root, "mysql")?;
    for (from, to) in [
        ("ca.pem".to_owned(), "ca.pem"),
        (format!("{node}.pem"), "server-cert.pem"),
        (format!("{node}.key"), "server-key.pem"),
    ] {
        let path = tls.join(to);
        write(&path, 0o600, &read(&keys.join(from))?)?;
        chown(&path, Some(uid), Some(gid)).map_err(at(&path))?;
    }
    write(
        &root.join("etc/mysql/mariadb.conf.d/61-keepalived-companion-node.cnf"),
        0o644,
        &format!(
            "[mariadbd]\nserver_id = {}\n# The lab's machine is small.\ninnodb_buffer_pool_size = 64M\n",
            node.server_id()
        ),
    )?;
    write(&root.join("etc/hostname"), 0o644, &format!("{node}\n"))?;
    write(
        &root.join("etc/hosts"),
        0o644,
        &format!("127.0.0.1 localhost\n127.0.1.1 {node}\n"),
    )?;
    adapt_settings(&root, advert_int)?;
    own_data_directory(&root)?;
    empty_document_root(&root)?;
    // Not before the databases are made; afterwards at each boot.
    write(
        &root.join("etc/systemd/system/keepalived.service.d/lab.conf"),
        0o644,
        "[Unit]\nConditionPathExists=/etc/keepalived/lab-ready\n",
    )
}

/// The image's directory is in the lower layer of the overlay, which cannot rename it: a new one.
fn empty_document_root(root: &Path) -> Result<(), LabError> {
    let path = root.join("var/www/html");
    fs::remove_dir_all(&path).map_err(at(&path))?;
    fs::create_dir(&path).map_err(at(&path))?;
    let (uid, gid) = user_ids(root, "www-data")?;
    let page = path.join("index.html");
    write(&page, 0o644, "it works\n")?;
    for path in [&path, &page] {
        chown(path, Some(uid), Some(gid)).map_err(at(path))?;
    }
    Ok(())
}

/// The same for the database's.
fn own_data_directory(root: &Path) -> Result<(), LabError> {
    let path = root.join("var/lib/mysql");
    let copy = root.join("var/lib/mysql.copy");
    Program::new("cp")
        .arg("-a")
        .args([&path, &copy])
        .deadline(Duration::from_secs(60))
        .run()?
        .success()?;
    fs::remove_dir_all(&path).map_err(at(&path))?;
    fs::rename(&copy, &path).map_err(at(&copy))
}

/// What differs between the shipped settings and the lab's.
fn adapt_settings(root: &Path, advert_int: &str) -> Result<(), LabError> {
    let settings = root.join("etc/keepalived/companion.toml");
    let mut text = read(&settings)?;
    // The client's host refuses the connection, which is an answer.
    text = text.replace("witnesses = []", "witnesses = [\"tcp:192.168.100.50:9\"]");
    if advert_int.starts_with('0') {
        // The documented fast profile.
        text = text.replace("connect_timeout_ms = 150", "connect_timeout_ms = 50");
    }
    // The example ends with its alerts.
    write(
        &settings,
        0o644,
        &format!(
            "{text}\nbackoff_s = 1\ntotal_timeout_ms = 2000\n[[alerts.channel]]\nname = \"lab\"\n\
             kind = \"webhook\"\nurl = \"http://{}/alerts\"\n",
            crate::messenger::ADDRESS
        ),
    )?;
    let conf = root.join("etc/keepalived/keepalived.conf");
    let text = read(&conf)?;
    write(
        &conf,
        0o644,
        &text.replace(
            "    advert_int 1\n",
            &format!("    advert_int {advert_int}\n"),
        ),
    )
}

/// A user and its group, in a node.
pub fn user_ids(root: &Path, user: &str) -> Result<(u32, u32), LabError> {
    let passwd = read(&root.join("etc/passwd"))?;
    passwd
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == user).then_some(())?;
            Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .ok_or_else(|| LabError::Unfit(format!("the image has no user {user}")))
}

/// Runs SQL as the node's root.
pub fn sql(node: NodeName, statements: &str) -> Result<String, LabError> {
    Ok(feed(node, &["mariadb", "-N", "-B"], statements)?
        .success()?
        .text())
}

/// Makes the first primary, empty standbys, the schema, and the application's account.
pub fn found(keys: &Path) -> Result<(), LabError> {
    let addresses: Vec<String> = NodeName::ALL
        .iter()
        .map(|n| format!("{},{}", n.private(), n.front()))
        .collect();
    let accounts = Program::new(repository().join("scripts/mariadb-accounts"))
        .arg("--secrets")
        .arg(keys)
        .args(&addresses)
        .run()?
        .success()?
        .text();
    for node in NodeName::ALL {
        sql(node, "RESET MASTER")?;
    }
    let application = "
        CREATE DATABASE ha_app;
        CREATE TABLE ha_app.rows (id BIGINT AUTO_INCREMENT PRIMARY KEY, writer INT NOT NULL, n BIGINT NOT NULL,
            at DATETIME(6) NOT NULL, UNIQUE (writer, n)) ENGINE=InnoDB;
        CREATE USER 'ha_user'@'192.168.100.%' IDENTIFIED BY 'securepass';
        CREATE USER 'ha_user'@'localhost' IDENTIFIED BY 'securepass';
        GRANT ALL ON ha_app.* TO 'ha_user'@'192.168.100.%';
        GRANT ALL ON ha_app.* TO 'ha_user'@'localhost';
        INSERT INTO keepalived_companion.epoch VALUES (1, 1, 'node1', NOW(6), '');
        SET GLOBAL read_only = 0;";
    sql(NodeName::Node1, &format!("{accounts}\n{application}"))?;
    // The toolkit's accounts reach the standby by replication, so its first channel is made by hand.
    let password = read(&keys.join("keepalived_repl"))?;
    sql(
        NodeName::Node2,
        &format!(
            "CHANGE MASTER TO MASTER_HOST = '{}', MASTER_USER = 'keepalived_repl', MASTER_PASSWORD = '{}', MASTER_SSL = 1, \
             MASTER_SSL_CA = '/etc/mysql/tls/ca.pem', MASTER_SSL_VERIFY_SERVER_CERT = 1, MASTER_CONNECT_RETRY = 1, \
             MASTER_HEARTBEAT_PERIOD = 1, MASTER_USE_GTID = slave_pos; START SLAVE;",
            NodeName::Node1.private(),
            password.trim()
        ),
    )?;
    for node in NodeName::ALL {
        exec(node, &["touch", "/etc/keepalived/lab-ready"])?.success()?;
    }
    Ok(())
}
