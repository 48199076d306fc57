//! A machine's life as a program sees it that was written for Firecracker: with `fctools`, a crate of the Rust
//! registry, which starts the binary, speaks its API, and knows nothing of this monitor.
//!
//! `client-fctools FIRECRACKER KERNEL INITRD DISK TOOLS TAP PLACE`: prints what the guest says, and ends with 0 if all
//! went as it does with Firecracker.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use fctools::extension::http_vsock::VmVsockHttp;
use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::api::VmApi;
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{
    BalloonDevice, BootSource, Drive, EntropyDevice, MachineConfiguration, MmdsConfiguration,
    MmdsVersion, NetworkInterface, UpdateBalloonDevice, UpdateDrive, VsockDevice,
};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vm::{Vm, VmState};
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::process::HyperResponseExt;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{MovedResourceType, ResourceType};
use futures_util::io::{AsyncBufRead, AsyncBufReadExt, BufReader, Lines};
use futures_util::stream::StreamExt;
use http::Request;
use http_body_util::Full;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for a line that begins so; returns the rest.
async fn line<R: AsyncBufRead + Unpin>(lines: &mut Lines<R>, begin: &str) -> String {
    let wait = async {
        while let Some(line) = lines.next().await {
            let line = line.expect("the console can be read");
            println!("{line}");
            if let Some(rest) = line.trim_end().strip_prefix(begin) {
                return rest.to_owned();
            }
        }
        panic!("the console ended before {begin:?}");
    };
    let found = timeout(PATIENCE, wait).await;
    found.unwrap_or_else(|_| panic!("no line {begin:?}"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [firecracker, kernel, initrd, disk, tools, tap, place] = &arguments[..] else {
        panic!("seven arguments, not {arguments:?}");
    };
    let place = Path::new(place);
    let installation = VmmInstallation::new(firecracker, firecracker, firecracker);
    let mut resources =
        ResourceSystem::new(DirectProcessSpawner, TokioRuntime, VmmOwnershipModel::Shared);
    let mut file = |path: &str| {
        let moved = ResourceType::Moved(MovedResourceType::HardLinkedOrCopied);
        resources.create_resource(path, moved).expect("a resource")
    };
    let drive = |id: &str, root: bool, read_only: bool, block| Drive {
        drive_id: id.into(),
        is_root_device: root,
        cache_type: None,
        partuuid: None,
        is_read_only: Some(read_only),
        block: Some(block),
        rate_limiter: None,
        io_engine: None,
        socket: None,
    };
    let boot_source = BootSource {
        kernel_image: file(kernel),
        initrd: Some(file(initrd)),
        boot_args: Some("console=ttyS0 reboot=k panic=1 pci=off ENV=/run.sh".into()),
    };
    let drives = vec![
        drive("disk", true, false, file(disk)),
        drive("tools", false, true, file(tools)),
    ];
    let socket = resources.create_resource(place.join("v.sock"), ResourceType::Produced);
    let data = VmConfigurationData {
        boot_source,
        drives,
        pmem_devices: Vec::new(),
        machine_configuration: MachineConfiguration {
            vcpu_count: 1,
            mem_size_mib: 256,
            smt: None,
            track_dirty_pages: Some(true),
            huge_pages: None,
        },
        cpu_template: None,
        network_interfaces: vec![NetworkInterface {
            iface_id: "eth0".into(),
            host_dev_name: tap.clone(),
            guest_mac: Some("06:00:ac:10:07:02".into()),
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        }],
        balloon_device: Some(BalloonDevice {
            amount_mib: 0,
            deflate_on_oom: true,
            stats_polling_interval_s: Some(1),
            free_page_reporting: Some(true),
        }),
        vsock_device: Some(VsockDevice {
            guest_cid: 3,
            uds: socket.expect("a resource"),
        }),
        logger_system: None,
        metrics_system: None,
        memory_hotplug_configuration: None,
        mmds_configuration: Some(MmdsConfiguration {
            version: MmdsVersion::V2,
            network_interfaces: vec!["eth0".into()],
            ipv4_address: None,
            imds_compat: None,
        }),
        entropy_device: Some(EntropyDevice { rate_limiter: None }),
    };
    let api = VmmApiSocket::Enabled(place.join("api.sock"));
    let executor = UnrestrictedVmmExecutor::new(VmmArguments::new(api))
        .id("fctools-1".to_owned().try_into().expect("an identifier"));
    let configuration = VmConfiguration::New {
        init_method: InitMethod::ViaApiCalls,
        data,
    };
    let vm = Vm::prepare(executor, resources, installation, configuration).await;
    let mut vm = vm.expect("a machine that is prepared");
    vm.start(Duration::from_secs(10)).await.expect("a machine that starts");
    let mut pipes = vm.take_pipes().expect("pipes");
    let mut lines = BufReader::new(&mut pipes.stdout).lines();

    // Metadata comes before the guest asks for it.
    let metadata = serde_json::json!({ "latest": { "meta-data": { "name": "violet" } } });
    vm.create_mmds_untyped(&metadata).await.expect("metadata");
    assert_eq!(vm.get_mmds_untyped().await.expect("metadata"), metadata);
    println!("version: {}", vm.get_firecracker_version().await.expect("a version"));
    let info = vm.get_info().await.expect("information");
    assert_eq!(info.id, "fctools-1");

    assert_eq!(line(&mut lines, "disk: ").await, "a disk of the host's");
    assert_eq!(line(&mut lines, "network: ").await, "a page of the host's");
    assert_eq!(line(&mut lines, "metadata: ").await, "violet");
    line(&mut lines, "tick ").await;

    // The guest's server may not have begun yet.
    let client = loop {
        match vm.connect_to_http_over_vsock(5000).await {
            Ok(client) => break client,
            Err(_) => line(&mut lines, "tick ").await,
        };
    };
    let request = Request::builder().uri("/").header("Host", "guest").body(Full::new(Bytes::new()));
    let mut answer = client.send_request(request.expect("a request")).await.expect("an answer");
    let text = answer.read_body_to_string().await.expect("a body");
    assert_eq!(text, "served by the guest");

    vm.update_drive(UpdateDrive {
        drive_id: "disk".into(),
        block: None,
        rate_limiter: None,
    })
    .await
    .expect("a drive that is changed");
    vm.update_balloon_device(UpdateBalloonDevice { amount_mib: 16 }).await.expect("a balloon");
    assert_eq!(vm.get_balloon_device().await.expect("a balloon").amount_mib, 16);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let statistics = vm.get_balloon_statistics().await.expect("statistics");
    println!("balloon: {statistics:?}");
    assert!(statistics.total_memory.is_some_and(|bytes| bytes > 100 << 20));

    vm.pause().await.expect("a pause");
    assert_eq!(vm.get_state(), VmState::Paused);
    // What was said before is read, and then there is silence.
    while timeout(Duration::from_millis(500), lines.next()).await.is_ok() {}
    assert!(timeout(Duration::from_secs(2), lines.next()).await.is_err(), "it goes on");
    vm.resume().await.expect("an end of it");
    line(&mut lines, "tick ").await;

    let shutdown = VmShutdownAction {
        method: VmShutdownMethod::CtrlAltDel,
        timeout: Some(Duration::from_secs(30)),
        graceful: true,
    };
    let outcome = vm.shutdown([shutdown]).await.expect("an orderly end");
    assert!(outcome.is_fully_graceful(), "{outcome:?}");
    vm.cleanup().await.expect("nothing is left");
    println!("the client is content");
}
