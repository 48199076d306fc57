//! A machine as a file says it, for `umbra run --config`: the form of the API's `/v1/vm/spec`, as `--print-config` prints
//! it.

use umbra_vmm::Spec;

/// Reads the file of this name.
pub fn parse(path: &str) -> Result<Box<Spec>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read it: {error}"))?;
    let spec = serde_json::from_str(&text);
    spec.map_err(|error| match is_firecrackers(&text) {
        true => "it has Firecracker's form; `umbra serve --config` takes that".to_owned(),
        false => error.to_string(),
    })
}

/// Tells whether a configuration, which may be none, has Firecracker's form.
fn is_firecrackers(text: &str) -> bool {
    let value = serde_json::from_str::<serde_json::Value>(text);
    value.is_ok_and(|value| value.get("boot-source").is_some())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use umbra_vmm::{MetadataConfig, VirtioKind};

    use super::*;
    use crate::args::{Cli, Command, Run};

    fn run(arguments: &[&str]) -> Result<Run, String> {
        let all = [&["umbra", "run"], arguments].concat();
        match Cli::try_parse_from(all).map(|cli| cli.command) {
            Ok(Command::Run(run)) => Ok(run),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    /// A machine without its metadata, and what that says: it is compared by what it is shared with.
    fn apart(mut spec: Spec) -> (Spec, Vec<(serde_json::Value, MetadataConfig)>) {
        let nets = spec
            .virtio
            .iter_mut()
            .filter_map(|device| match &mut device.kind {
                VirtioKind::Net(net) => net.metadata.take(),
                _ => None,
            });
        let said = nets.map(|metadata| (metadata.data.get(), metadata.config));
        let said = said.collect();
        (spec, said)
    }

    #[test]
    fn what_is_printed_is_the_machine_of_the_command_line() {
        let place = tempfile::tempdir().unwrap();
        let metadata = place.path().join("metadata");
        std::fs::write(&metadata, r#"{"latest": {"name": "violet"}}"#).unwrap();
        let net = format!(
            "user,tcp=80:80,metadata={},metadata-version=2",
            metadata.display()
        );
        let table: &[&[&str]] = &[
            &[],
            &["--initrd", "i", "--module", "m a=1", "--cmdline", "-- -x"],
            &[
                "--cpus",
                "3",
                "--memory",
                "2G",
                "--backend",
                "soft",
                "--on-reset",
                "restart",
            ],
            &[
                "--backend",
                "kvm",
                "--kvm-device",
                "/k",
                "--kvm-irqchip",
                "split",
                "--tsc-khz",
                "5",
            ],
            &[
                "--cpu",
                "max",
                "--processor",
                "interpreter",
                "--cpu-template",
                "x86-64-v2",
            ],
            &["--tag-bits", "4", "--first-generation", "7", "--audit", "9"],
            &[
                "--disk",
                "d,format=qcow2,backing,cache=unsafe,serial=s,queues=2,engine=threads,ops=10:100:5",
            ],
            &[
                "--disk",
                "a,direct,readonly",
                "--disk",
                "b,id=b,bandwidth=1M",
            ],
            &[
                "--net",
                "tap=t,queues=2,mac=02:00:00:00:00:01,mtu=1400,rx-ops=10",
                "--net",
                "socket=s",
            ],
            &["--net", &net, "--net", "tap=t,vhost"],
            &["--vsock", "cid=5,path=v"],
            &["--vsock", "cid=5,vhost"],
            &[
                "--vhost-user",
                "fs,socket=s,tag=t",
                "--vhost-user",
                "block,socket=b,queues=2,queue-size=64",
            ],
            &[
                "--vhost-user",
                "device=18,socket=s,config=8",
                "--vdpa",
                "/dev/vhost-vdpa-0",
            ],
            &[
                "--pmem",
                "p,readonly,ops=5",
                "--mem",
                "max=4G,size=1G,block=4M",
            ],
            &["--rng", "--balloon", "size=64M,deflate-on-oom=off"],
            &["--rng=bandwidth=64K:100:1M", "--balloon"],
            &[
                "--console",
                "stdio",
                "--console",
                "file=f",
                "--console",
                "socket=s,name=n",
            ],
            &[
                "--pci",
                "--keyboard",
                "--serial-limit",
                "10K",
                "--debug-exit",
                "0x501",
            ],
            &[
                "--virtio-cmdline",
                "--rng",
                "--test-device",
                "--fw-cfg",
                "opt/a,string=x",
            ],
            &["--fw-cfg"],
        ];
        for arguments in table {
            let said = run(&[&["--kernel", "k"], *arguments].concat())
                .unwrap()
                .spec();
            let file = place.path().join("config");
            std::fs::write(&file, crate::run::config(&said).unwrap()).unwrap();
            let read = run(&["--config", file.to_str().unwrap()]).unwrap().spec();
            assert_eq!(apart(read), apart(said), "{arguments:?}");
        }
        let said = apart(run(&["--kernel", "k", "--net", &net]).unwrap().spec());
        assert_eq!(said.1[0].0["latest"]["name"], "violet");
    }

    #[test]
    fn a_file_is_instead_of_everything_else_that_describes_a_machine() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = place.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let good = path("good", r#"{"kernel": "k", "debug_exit": 5}"#);
        let parsed = run(&["--config", &good, "--stats", "--trace", "mmu=t"]).unwrap();
        assert!(Command::Run(parsed).has_exit_port());
        for more in [
            &["--kernel", "k"][..],
            &["--cpus", "1"],
            &["--initrd", "i"],
            &["--disk", "d"],
            &["--module", "m"],
            &["--backend", "auto"],
        ] {
            let refused = run(&[&["--config", &good], more].concat()).unwrap_err();
            assert!(refused.contains("cannot be used with"), "{refused}");
        }
        let bad = path("bad", r#"{"kernel": "k", "cpu": 1}"#);
        let other = path("other", r#"{"boot-source": {"kernel_image_path": "k"}}"#);
        for (file, why) in [
            (&bad[..], "unknown field `cpu`"),
            (&other, "Firecracker's form"),
            ("/no/such/file", "cannot read it"),
        ] {
            let refused = run(&["--config", file]).unwrap_err();
            assert!(refused.contains(why) && refused.contains(file), "{refused}");
        }
    }
}
