//! Programs that were written for Firecracker, and know nothing of this monitor, have a stock Debian guest: packages of
//! public registries, as they are. `tests/clients` is what uses them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use umbra::demo::cache::Cache;

use crate::support::guest::{Guest, LINUX_6_1, lock_for, or_skip};
use crate::support::python::{self, CLIENTS};
use crate::support::{namespace, tools};

/// The package of PyPI.
const PYTHON: &str = "firecracker-python==0.0.5";

/// What the guest's shell does first: what a client wants to see. `@MOUNT@` mounts the tools.
const RUN: &str = r#"
killall udhcpc 2>/dev/null
mkdir -p /disk && mount -t ext4 /dev/vda /disk && echo "disk: $(cat /disk/greeting)"
tools=vdb
@MOUNT@
ip addr add 172.16.7.2/24 dev eth0
ip route add default via 172.16.7.1
echo "network: $(wget -q -O - http://172.16.7.1/page)"
metadata=http://169.254.169.254/latest
token=$(in_tools curl -s -X PUT $metadata/api/token -H 'X-metadata-token-ttl-seconds: 60')
echo "metadata: $(in_tools curl -s -H "X-metadata-token: $token" $metadata/meta-data/name)"
cat > /serve <<'EOF'
#!/bin/sh
while read -r line && [ "$line" != "$(printf '\r')" ]; do :; done
printf 'HTTP/1.1 200 OK\r\nContent-Length: 19\r\nConnection: close\r\n\r\nserved by the guest'
EOF
chmod +x /serve
libraries=/tools/lib/x86_64-linux-gnu:/tools/usr/lib/x86_64-linux-gnu
/tools/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path $libraries /tools/usr/bin/socat \
  VSOCK-LISTEN:5000,fork EXEC:/serve &
i=0
while :; do i=$((i + 1)); echo "tick $i"; sleep 0.1; done
"#;

/// Builds the client that uses a crate.
fn fctools() -> Result<PathBuf> {
    let cache = Cache::open()?;
    let _lock = lock_for(&cache, "client-fctools")?;
    let target = cache.other("client-fctools");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--locked", "--quiet", "--manifest-path"])
        .arg(format!("{CLIENTS}/fctools/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("fctools: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(target.join("debug/client-fctools"))
}

/// Has a client live through a machine's life.
fn live(client: &str) {
    let (Some(guest), Some(tools)) = (Guest::fetch(LINUX_6_1), or_skip(tools::disk())) else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let run = RUN.replace("@MOUNT@", tools::MOUNT);
    let guest = guest.with_program(place.path(), "run.sh", run.as_bytes());
    fs::create_dir_all(path("site")).unwrap();
    fs::write(path("site/page"), "a page of the host's").unwrap();
    fs::create_dir_all(path("files")).unwrap();
    fs::write(path("files/greeting"), "a disk of the host's").unwrap();
    tools::ext4(&path("disk"), &path("files"), "16M").unwrap();
    symlink(env!("CARGO_BIN_EXE_umbra"), path("firecracker")).unwrap();
    fs::create_dir_all(path("client")).unwrap();
    let script = format!(
        "export UMBRA_BACKEND=soft\n\
         ip link set lo up\n\
         ip tuntap add dev tap0 mode tap vnet_hdr\n\
         ip addr add 172.16.7.1/24 dev tap0\n\
         ip link set tap0 up\n\
         $busybox httpd -p 172.16.7.1:80 -h {place}/site\n\
         {client} {place}/firecracker {kernel} {initrd} {place}/disk {tools} tap0 {place}/client\n",
        place = place.path().display(),
        kernel = guest.kernel(),
        initrd = guest.initrd(),
        tools = tools.display(),
    );
    let Some(printed) = or_skip(namespace::run(&script, 300)) else {
        return;
    };
    let text = &printed.stdout;
    assert!(
        text.ends_with("the client is content\n"),
        "{text}\n{}",
        printed.stderr
    );
}

#[test]
fn a_client_of_the_rust_registry_lives_through_a_machines_life() {
    if let Some(client) = or_skip(fctools()) {
        live(client.to_str().unwrap());
    }
}

#[test]
fn a_client_of_pypi_lives_through_a_machines_life() {
    if let Some(python) = or_skip(python::with(PYTHON)) {
        // It looks for the process that it has started, whose number is one of the namespace's.
        let own_proc = r#"unshare --mount sh -c 'mount -t proc proc /proc && exec "$0" "$@"'"#;
        let python = python.display();
        live(&format!(
            "{own_proc} {python} {CLIENTS}/firecracker_python.py"
        ));
    }
}
