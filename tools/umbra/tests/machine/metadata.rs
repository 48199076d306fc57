//! Stock guests ask the metadata service about themselves, with programs of Debian's, beside the host's network.

use std::fs;
use std::path::Path;

use crate::support::backend::on_each_stock_backend;
use crate::support::guest::{Guest, LINUX_6_1, or_skip};
use crate::support::namespace;
use crate::support::tools;

/// Bytes of a value that takes many segments.
const LONG: usize = 40_000;

/// What the guest has for its questions.
const ASK: &str = r#"
service=http://169.254.169.254
ask() { in_tools curl -s --max-time 20 "$@"; }
status() { ask -o /dev/null -w '%{http_code}' "$@"; }
"#;

/// What the guest does with an interface of two queues: among others, it begins a connection on one processor, and
/// speaks on another one, by the other queue.
const FIRST_VERSION: &str = r#"
ip addr add 10.9.0.2/24 dev eth0
ip route add 169.254.169.254 dev eth0
echo "queues: $(ls -d /sys/class/net/eth0/queues/tx-* | wc -l)"
echo "text: $(ask $service/latest/meta-data/name)"
echo "names: $(ask $service/latest/ | tr '\n' ' ')"
echo "json: $(ask -H 'Accept: application/json' $service/latest/meta-data)"
echo "number: $(status $service/latest/meta-data/cores)"
echo "nothing: $(status $service/latest/none)"
echo "put: $(status -X PUT $service/latest)"
echo "busybox: $(wget -q -O - $service/latest/meta-data/name)"
mkfifo /tmp/said
taskset 1 nc 169.254.169.254 80 < /tmp/said > /tmp/heard &
nc=$!
exec 3> /tmp/said
sleep 1
taskset -p 2 $nc > /dev/null
printf 'GET /latest/meta-data/name HTTP/1.0\r\n\r\n' >&3
exec 3>&-
wait $nc
echo "moved: $(tail -n 1 /tmp/heard)"
i=0; good=0
while [ $i -lt 50 ]; do
  i=$((i + 1))
  [ "$(wget -q -O - $service/latest/meta-data/name)" = violet ] && good=$((good + 1))
done
echo "often: $good"
echo "host: $(wget -q -O - http://10.9.0.1/page)"
poweroff -f
"#;

/// What the guest does where it has a token to ask for, and no route but by the gateway.
const SECOND_VERSION: &str = r#"
echo "none: $(status $service/latest/meta-data/name)"
echo "wrong: $(status -H 'X-metadata-token: 00' $service/latest/meta-data/name)"
echo "forwarded: $(status -X PUT -H 'X-metadata-token-ttl-seconds: 60' -H 'X-Forwarded-For: 10.0.0.1' $service/latest/api/token)"
token=$(ask -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 600' $service/latest/api/token)
echo "text: $(ask -H "X-metadata-token: $token" $service/latest/meta-data/name)"
echo "long: $(ask -H "X-aws-ec2-metadata-token: $token" $service/long | wc -c)"
brief=$(ask -X PUT -H 'X-metadata-token-ttl-seconds: 1' $service/latest/api/token)
sleep 2
echo "late: $(status -H "X-metadata-token: $brief" $service/latest/meta-data/name)"
echo "host: $(wget -q -O - http://10.8.0.2/page)"
poweroff -f
"#;

/// What was printed behind a word at the beginning of a line.
fn answer<'a>(text: &'a str, word: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(word));
    line.unwrap_or_else(|| panic!("no line {word:?}: {text}"))
        .trim()
}

/// Writes down the data, a page of the host's, and what the guest does.
fn prepare(place: &Path, questions: &str) {
    let long = "0123456789".repeat(LONG / 10);
    let data = format!(
        r#"{{"latest": {{"meta-data": {{"name": "violet", "cores": 2}}, "user-data": "x"}}, "long": "{long}"}}"#
    );
    fs::write(place.join("metadata.json"), data).unwrap();
    fs::create_dir(place.join("site")).unwrap();
    fs::write(place.join("site/page"), "a page of the host's").unwrap();
    let commands = format!("tools=vda\n{}{ASK}{questions}", tools::MOUNT);
    fs::write(place.join("commands"), commands).unwrap();
}

/// Runs the guest with a network that a script makes, of which `@MACHINE@` runs it; checks what it prints.
fn run(guest: &Guest, place: &Path, devices: &str, script: &str, expected: &[(&str, &str)]) {
    let machine = format!(
        "$umbra run --kernel {} --initrd {} {devices},metadata={place}/metadata.json \
         --cmdline 'console=ttyS0 panic=-1 quiet' < {place}/commands",
        guest.kernel(),
        guest.initrd(),
        place = place.display(),
    );
    let script = script
        .replace("@MACHINE@", &machine)
        .replace("@SITE@", &place.join("site").display().to_string());
    let Some(printed) = or_skip(namespace::run(&script, 240)) else {
        return;
    };
    for (word, expected) in expected {
        let answer = answer(&printed.stdout, word);
        assert_eq!(answer, *expected, "{word}{}", printed.stdout);
    }
    assert_eq!(printed.stderr, "");
}

fn a_guest_reads_metadata_by_a_tap_interface_of_two_queues(backend: &str) {
    let (Some(guest), Some(tools)) = (Guest::fetch(LINUX_6_1), or_skip(tools::disk())) else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    prepare(place.path(), FIRST_VERSION);
    let devices = format!(
        "--backend {backend} --cpus 2 --disk '{},readonly' --net tap=t0,queues=2",
        tools.display()
    );
    let script = "@MACHINE@ &\nmachine=$!\n\
                  until $busybox ip link show t0 > /dev/null 2>&1; do sleep 0.05; done\n\
                  $busybox ip addr add 10.9.0.1/24 dev t0\n\
                  $busybox ip link set t0 up\n\
                  $busybox httpd -p 10.9.0.1:80 -h @SITE@\n\
                  wait $machine\n";
    let expected = [
        ("queues: ", "2"),
        ("text: ", "violet"),
        ("names: ", "meta-data/ user-data"),
        ("json: ", r#"{"cores":2,"name":"violet"}"#),
        ("number: ", "501"),
        ("nothing: ", "404"),
        ("put: ", "404"),
        ("busybox: ", "violet"),
        ("moved: ", "violet"),
        ("often: ", "50"),
        ("host: ", "a page of the host's"),
    ];
    run(&guest, place.path(), &devices, script, &expected);
}

fn a_guest_reads_metadata_with_a_token_by_passt(backend: &str) {
    let (Some(guest), Some(passt)) = (Guest::fetch(LINUX_6_1), or_skip(namespace::passt())) else {
        return;
    };
    let Some(tools) = or_skip(tools::disk()) else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    prepare(place.path(), SECOND_VERSION);
    let devices = format!(
        "--backend {backend} --pci --disk '{},readonly' --net 'user,passt={}',metadata-version=2",
        tools.display(),
        passt.display()
    );
    // Something has to be there that passt can take its address from.
    let script = "$busybox ip link set lo up\n\
                  $busybox ip link add v0 type veth\n\
                  $busybox ip addr add 10.8.0.1/24 dev v0\n\
                  $busybox ip link set v0 up\n\
                  $busybox ip route add default via 10.8.0.2\n\
                  $busybox httpd -p 80 -h @SITE@\n\
                  @MACHINE@\n";
    let expected = [
        ("none: ", "401"),
        ("wrong: ", "401"),
        ("forwarded: ", "400"),
        ("text: ", "violet"),
        ("long: ", "40000"),
        ("late: ", "401"),
        ("host: ", "a page of the host's"),
    ];
    run(&guest, place.path(), &devices, script, &expected);
}

on_each_stock_backend! {
    a_guest_reads_metadata_by_a_tap_interface_of_two_queues,
    a_guest_reads_metadata_with_a_token_by_passt,
}
