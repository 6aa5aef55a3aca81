//! kube-proxy's left-overs in a real kernel (B157): found, removed, and the flows they carry go on. Needs root, `nft`
//! and `iptables`, whose absence is told.
//!
//! Node, client and pod are network namespaces of threads; the rules have kube-proxy's form, in each of its three kinds.

mod lab;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use lab::sh;
use lb_agent::leftovers;

const VIP: [&str; 2] = ["10.96.0.1", "fd96::1"];

/// A thread in a network namespace of its own that does what it is told.
struct Host {
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    tid: i32,
}

impl Host {
    /// Makes it, linked to the calling thread's namespace by a veth pair with these networks.
    fn new(name: &str, prefixes: [&str; 2]) -> Self {
        let (jobs, todo) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            // SAFETY: unshare() takes no pointers; it affects this thread alone.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            // SAFETY: gettid() takes nothing and can't fail.
            tell.send(unsafe { libc::gettid() }).expect("the test waits");
            for job in todo {
                job();
            }
        });
        let host = Self { jobs, tid: told.recv().expect("a thread") };
        sh(&format!("ip link add {name} type veth peer name eth0 netns {}", host.tid));
        let prefixes = prefixes.map(str::to_owned);
        for prefix in &prefixes {
            let nodad = if prefix.contains(':') { "nodad" } else { "" };
            sh(&format!("ip address add {}1/{} dev {name} {nodad}", prefix, length(prefix)));
        }
        sh(&format!("ip link set {name} up"));
        host.run(move || {
            for prefix in &prefixes {
                let (nodad, family) = if prefix.contains(':') { ("nodad", "-6") } else { ("", "-4") };
                sh(&format!("ip address add {}2/{} dev eth0 {nodad}", prefix, length(prefix)));
                sh("ip link set eth0 up");
                sh(&format!("ip {family} route add default via {prefix}1"));
            }
        });
        host
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.jobs.send(Box::new(move || tell.send(job()).expect("the test waits"))).expect("a thread");
        told.recv().expect("the job panicked")
    }
}

fn length(prefix: &str) -> u8 {
    if prefix.contains(':') { 64 } else { 24 }
}

/// Client and pod behind this thread's namespace, which forwards; the pod echoes on port 8080.
fn hosts() -> (Host, Host) {
    sh("ip link set lo up");
    for (file, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
        std::fs::write(format!("/proc/sys/net/{file}"), value).expect("a sysctl");
    }
    let client = Host::new("client", ["10.1.0.", "fd01::"]);
    let pod = Host::new("pod", ["10.2.0.", "fd02::"]);
    pod.run(|| {
        let listener = TcpListener::bind("[::]:8080").expect("the pod's port");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut write = stream.try_clone().expect("a stream");
                    let _ = std::io::copy(&mut &stream, &mut write);
                });
            }
        });
    });
    (client, pod)
}

/// Opens a connection of the client.
fn connect(client: &Host, to: &str) -> std::io::Result<TcpStream> {
    let to = SocketAddr::new(to.parse::<IpAddr>().expect("an address"), 80);
    client.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(2)))
}

/// Sends 1 MiB and reads it back.
fn echo(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut write = stream.try_clone()?;
    let writer = std::thread::spawn(move || write.write_all(&vec![7; 1 << 20]));
    let mut back = vec![0; 1 << 20];
    (&mut &*stream).read_exact(&mut back)?;
    writer.join().expect("the writer")
}

fn feed(program: &str, arguments: &[&str], text: &str) {
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).spawn().expect(program);
    child.stdin.take().expect("its input").write_all(text.as_bytes()).expect("its input");
    assert!(child.wait().expect(program).success(), "{program} {arguments:?}");
}

fn is_there(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        eprintln!("SKIPPED: no {program}");
    }
    there
}

/// The rules of kube-proxy's nftables mode.
fn nftables() {
    for (family, vip, pod) in [("ip", VIP[0], "10.2.0.2:8080"), ("ip6", VIP[1], "[fd02::2]:8080")] {
        let text = format!(
            "table {family} kube-proxy {{
                map service-ips {{
                    type {}_addr . inet_proto . inet_service : verdict
                    elements = {{ {vip} . tcp . 80 : goto service-A }}
                }}
                chain endpoint-A {{
                    meta l4proto tcp dnat to {pod}
                }}
                chain mark-for-masquerade {{
                    meta mark set mark or 0x4000
                }}
                chain service-A {{
                    {family} saddr != {vip} jump mark-for-masquerade
                    numgen random mod 1 vmap {{ 0 : goto endpoint-A }}
                }}
                chain services {{
                    {family} daddr . meta l4proto . th dport vmap @service-ips
                }}
                chain nat-prerouting {{
                    type nat hook prerouting priority dstnat;
                    jump services
                }}
                chain nat-postrouting {{
                    type nat hook postrouting priority srcnat;
                    meta mark & 0x4000 == 0x4000 masquerade
                }}
            }}\n",
            if family == "ip" { "ipv4" } else { "ipv6" }
        );
        feed("nft", &["-f", "-"], &text);
    }
}

/// The rules of kube-proxy's iptables mode, and some of the kubelet and of others; `variant`: `nft` or `legacy`.
fn iptables(variant: &str) {
    for (name, vip, pod) in [("iptables", VIP[0], "10.2.0.2:8080"), ("ip6tables", VIP[1], "[fd02::2]:8080")] {
        let text = format!(
            "*filter\n:FORWARD ACCEPT [0:0]\n:KUBE-FIREWALL - [0:0]\n:KUBE-FORWARD - [0:0]\n:KUBE-PROXY-CANARY - [0:0]\n\
             -A INPUT -j KUBE-FIREWALL\n-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
             -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -p tcp --dport 9 -j DROP\n\
             COMMIT\n*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n:KUBE-SEP-A - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
             :KUBE-POSTROUTING - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n\
             -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
             -A KUBE-SERVICES -d {vip} -p tcp --dport 80 -j KUBE-SVC-A\n-A KUBE-SVC-A -j KUBE-MARK-MASQ\n\
             -A KUBE-SVC-A -m comment --comment \"a -> b\" -j KUBE-SEP-A\n-A KUBE-SEP-A -p tcp -j DNAT --to-destination {pod}\n\
             -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
             -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n-A KUBE-POSTROUTING -j MASQUERADE\nCOMMIT\n"
        );
        feed(&format!("{name}-{variant}-restore"), &["--noflush"], &text);
    }
}

fn saved(variant: &str) -> String {
    sh(&format!("iptables-{variant}-save")) + &sh(&format!("ip6tables-{variant}-save"))
}

/// Flows through the rules that `make` makes go on when they are removed; new ones are not served any more.
fn flows_survive(make: fn(), expected: &[&str]) {
    let (client, _pod) = hosts();
    make();
    let found = leftovers::look();
    for part in expected {
        assert!(found.rules.iter().any(|rule| rule.contains(part)), "{part}: {found:?}");
    }
    assert!(found.warnings()[0].contains("go on serving deleted Services"), "{:?}", found.warnings());
    let flows: Vec<_> =
        VIP.iter().map(|vip| connect(&client, vip).expect("through kube-proxy's rules")).collect();
    for flow in &flows {
        echo(flow).expect("before");
    }
    let said = leftovers::remove().expect("removal");
    for flow in &flows {
        echo(flow).unwrap_or_else(|error| panic!("after: {error}; {said:?}"));
    }
    assert!(said.iter().any(|line| line.contains("2 flows")), "{said:?}");
    let left = leftovers::look();
    assert_eq!((left.rules.as_slice(), left.kept_flows), ([].as_slice(), Some(2)), "{left:?}");
    assert!(connect(&client, VIP[0]).is_err(), "the rules still serve");

    // Our table goes with the last flow.
    let time_wait = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait";
    std::fs::write(time_wait, "1").expect("a sysctl");
    drop(flows);
    let mut last = 2;
    for _ in 0..100 {
        last = leftovers::release().expect("asking");
        if last == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!((last, leftovers::look().kept_flows), (0, None));
    assert_eq!(leftovers::remove().expect("nothing to do"), ["no rules of kube-proxy are left"]);
}

#[test]
fn b157_flows_of_nftables_mode_survive_the_removal_of_its_rules() {
    if is_there("nft") {
        lab::run(|_| flows_survive(nftables, &["table ip kube-proxy", "table ip6 kube-proxy"]));
    }
}

#[test]
fn b157_without_a_nat_chain_the_flows_break() {
    if is_there("nft") {
        lab::run(|_| {
            let (client, _pod) = hosts();
            nftables();
            let flow = connect(&client, VIP[0]).expect("through kube-proxy's rules");
            echo(&flow).expect("before");
            sh("nft delete table ip kube-proxy");
            sh("nft delete table ip6 kube-proxy");
            assert!(echo(&flow).is_err(), "this kernel needs no nat chain for established flows");
        });
    }
}

#[test]
fn b157_flows_of_iptables_mode_survive_in_its_nft_variant() {
    if is_there("iptables-nft-restore") {
        lab::run(|_| {
            flows_survive(|| iptables("nft"), &["5 chains in table ip nat", "2 chains in table ip6 filter"]);
            let left = saved("nft");
            others_stay(&left);
        });
    }
}

#[test]
fn b157_flows_of_iptables_mode_survive_in_its_legacy_variant() {
    if is_there("iptables-legacy-restore") {
        lab::run(|_| {
            flows_survive(|| iptables("legacy"), &["iptables-legacy nat", "ip6tables-legacy filter"]);
            let left = saved("legacy");
            others_stay(&left);
        });
    }
}

/// B158, and rules of others.
fn others_stay(left: &str) {
    for kept in
        ["-A INPUT -j KUBE-FIREWALL", ":KUBE-KUBELET-CANARY", "-A FORWARD -p tcp -m tcp --dport 9 -j DROP"]
    {
        assert_eq!(left.matches(kept).count(), 2, "{kept} in\n{left}");
    }
    for gone in [
        "KUBE-SERVICES",
        "KUBE-SVC",
        "KUBE-SEP",
        "KUBE-MARK-MASQ",
        "KUBE-POSTROUTING",
        "KUBE-FORWARD",
        "CANARY -A",
    ] {
        assert!(!left.contains(gone), "{gone} in\n{left}");
    }
}

#[test]
fn b115_a_forward_chain_that_drops_is_named() {
    if !is_there("iptables-nft") || !is_there("iptables-legacy") {
        return;
    }
    lab::run(|_| {
        sh("iptables-legacy -P FORWARD ACCEPT");
        assert_eq!(leftovers::look().forward_drops, [""; 0]);
        sh("iptables-legacy -P FORWARD DROP");
        sh("iptables-nft -P FORWARD DROP");
        sh("ip6tables-legacy -P FORWARD DROP");
        let expected =
            ["ip filter FORWARD", "iptables-legacy filter FORWARD", "ip6tables-legacy filter FORWARD"];
        assert_eq!(leftovers::look().forward_drops, expected);
    });
}
