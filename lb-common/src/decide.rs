//! The one decision: which frontend a packet is aimed at, and what becomes of a new flow to it.
//!
//! All hooks ask here, so that the same flow gets the same answer everywhere.

use crate::abi::{AffValue, BE_IN_CLUSTER, BE_IN_LOCAL, BE_LOCAL, LbConfig, SvcValue};
use crate::abi::{CFG_DETECT_IF, CFG_MASQ_LOCAL, CFG_REJECT_UNKNOWN, IF_DETECT, IF_POD};
use crate::abi::{ROLE_FRONTEND, ROLE_NODEPORT};
use crate::abi::{SVC_EXTERNAL, SVC_HAS_ANY, SVC_LOCAL, SVC_MAGLEV, SVC_MASQ_ALL, SVC_RANGES};
use crate::counter::Counter;
use crate::env::Env;
use crate::family::{Backend, Family};
use crate::maglev;

/// What a destination is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// No frontend of ours, nor a service address.
    NotOurs,
    /// A frontend.
    Service(SvcValue),
    /// An active ClusterIP, but not one of its ports or protocols (B91).
    UnknownPort,
    /// Inside a service CIDR, but no active ClusterIP (B92).
    UnknownAddress,
}

/// Finds the frontend of a destination. `roles` are those of its address; `answers` are the `NODE_*` bits of which one
/// lets NodePorts answer on an address of the node.
///
/// Exact addresses come before NodePorts (B35). Reads at most three table entries, none if `roles` has no bit of a
/// frontend and the address is outside of service CIDRs.
#[inline(always)]
pub fn target<F: Family>(
    env: &impl Env<F>,
    config: &LbConfig,
    roles: u8,
    answers: u32,
    addr: F::Addr,
    port: [u8; 2],
    proto: u8,
) -> Target {
    if roles & ROLE_FRONTEND != 0
        && let Some(service) = env.service(&F::svc_key(addr, port, proto))
    {
        return Target::Service(service);
    }
    if roles & ROLE_NODEPORT != 0
        && is_nodeport(config, port)
        && env.node(addr) & answers != 0
        && let Some(service) = env.service(&F::svc_key(F::ZERO, port, proto))
    {
        return Target::Service(service);
    }
    if roles & ROLE_FRONTEND != 0 && env.service(&F::svc_key(addr, [0; 2], 0)).is_some() {
        return if config.flags & CFG_REJECT_UNKNOWN != 0 { Target::UnknownPort } else { Target::NotOurs };
    }
    if F::near_service_cidr(config, addr) && env.in_service_cidr(addr) && env.node(addr) == 0 {
        return Target::UnknownAddress;
    }
    Target::NotOurs
}

/// The port (network order) is inside the range of NodePorts in use.
#[must_use]
#[inline(always)]
pub fn is_nodeport(config: &LbConfig, port: [u8; 2]) -> bool {
    let port = u16::from_be_bytes(port);
    port >= config.nodeports.min && port <= config.nodeports.max
}

/// Who sends, as far as the rules ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// Pod traffic by the configured detector; `None` = this family has no detector (B77).
    pub pod: Option<bool>,
    /// Made on this host.
    pub host: bool,
    /// Came in by an interface behind which are pods of this node.
    pub pod_facing: bool,
}

impl Source {
    /// A socket or packet of this host: never pod traffic by interface (B78), but maybe by its address (B73).
    #[inline(always)]
    pub fn host<F: Family>(config: &LbConfig, addr: Option<F::Addr>) -> Source {
        let pod = if config.flags & CFG_DETECT_IF != 0 {
            Some(false)
        } else {
            match addr {
                Some(addr) => F::pod_by_source(config, addr),
                None => F::pod_by_source(config, F::ZERO).map(|_| false),
            }
        };
        Source { pod, host: true, pod_facing: false }
    }

    /// A socket of a pod: it would come in by the pod's interface. `addr` is the address it is bound to; without one
    /// it will take the pod's own.
    #[inline(always)]
    pub fn pod<F: Family>(config: &LbConfig, addr: Option<F::Addr>) -> Source {
        let pod = if config.flags & CFG_DETECT_IF != 0 {
            Some(true)
        } else {
            match addr {
                Some(addr) => F::pod_by_source(config, addr),
                None => F::pod_by_source(config, F::ZERO).map(|_| true),
            }
        };
        Source { pod, host: false, pod_facing: true }
    }

    /// A packet that came in by an interface.
    #[inline(always)]
    pub fn packet<F: Family>(config: &LbConfig, addr: F::Addr, if_flags: u32) -> Source {
        let pod = if config.flags & CFG_DETECT_IF != 0 {
            Some(if_flags & IF_DETECT != 0)
        } else {
            F::pod_by_source(config, addr)
        };
        Source { pod, host: false, pod_facing: if_flags & IF_POD != 0 }
    }
}

/// What becomes of a new flow to a frontend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// To a backend.
    Deliver,
    /// Refused with an error that the client sees.
    Reject,
    /// Silently discarded.
    Drop,
}

/// An outcome with what belongs to it. One struct, every field always set: an enum would leave bytes undefined, which
/// the BPF verifier does not let a program copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Decision<F: Family> {
    /// What becomes of it.
    pub outcome: Outcome,
    /// Why it is rejected or dropped.
    pub reason: Counter,
    /// The backend's row.
    pub backend: Backend<F>,
    /// The backend's id.
    pub id: u32,
    /// Present generation of the id.
    pub generation: u32,
    /// The source is to be replaced at egress.
    pub masquerade: bool,
}

impl<F: Family> Decision<F> {
    #[inline(always)]
    fn refusal(outcome: Outcome, reason: Counter) -> Decision<F> {
        Decision { outcome, reason, backend: Backend::default(), id: 0, generation: 0, masquerade: false }
    }
}

/// Decides a new flow from `client` to a frontend. `ports` are [`maglev::ports`], or 0 if the client's is not known.
///
/// Order: source ranges (B99), the set that the policy gives (B47-B49, B82), an empty set (B86, B87), affinity
/// (B65, B67, B68), a draw, random (B29) or by the flow's hash ([`SVC_MAGLEV`]), masquerade (B80 with the differences 1 and 2 of DESIGN.md section 5).
/// Remembers the choice when the service port has affinity; has no other effect.
#[inline(always)]
pub fn decide<F: Family>(
    env: &mut impl Env<F>,
    config: &LbConfig,
    service: &SvcValue,
    client: F::Addr,
    ports: u32,
    source: &Source,
) -> Decision<F> {
    if service.flags & SVC_RANGES != 0 && !env.in_source_ranges(service.id, client) {
        return Decision::refusal(Outcome::Drop, Counter::DropSourceRange);
    }
    let external = service.flags & SVC_EXTERNAL != 0;
    let short_circuit = external && (source.pod == Some(true) || source.host);
    let local = service.flags & SVC_LOCAL != 0 && !short_circuit;
    let set = if local {
        Set { start: service.local_start, len: service.local_len, member: BE_IN_LOCAL }
    } else {
        Set { start: service.cluster_start, len: service.cluster_len, member: BE_IN_CLUSTER }
    };
    if set.len == 0 {
        return if service.flags & SVC_HAS_ANY != 0 {
            Decision::refusal(Outcome::Drop, Counter::DropNoLocalEndpoints)
        } else {
            Decision::refusal(Outcome::Reject, Counter::RejectNoEndpoints)
        };
    }
    let id = select(env, service, &client, ports, &set);
    let Some(backend) = env.backend(id) else {
        return Decision::refusal(Outcome::Drop, Counter::DropNoBackend);
    };
    let generation = env.generation(id);
    // a loopback address is no pod's destination; and a hairpin is never left as it is
    let stays = backend.flags & BE_LOCAL != 0 && !F::is_loopback(client);
    let masquerade = client == backend.addr || masquerade(config.flags, service.flags, *source, stays);
    Decision { outcome: Outcome::Deliver, reason: Counter::NewFlow, backend, id, generation, masquerade }
}

/// The slots of a set, and the flag of its members.
struct Set {
    start: u32,
    len: u32,
    member: u8,
}

/// Stands for the ports of all flows of a client.
const ANY_PORT: u32 = u32::MAX;

/// A backend id: the one that affinity names if it is a member of the set, else one drawn from the set; 0 if a slot
/// is missing. Not inlined: a BPF stack is small.
#[inline(never)]
fn select<F: Family>(
    env: &mut impl Env<F>,
    service: &SvcValue,
    client: &F::Addr,
    ports: u32,
    set: &Set,
) -> u32 {
    // with affinity a client has one choice, on all nodes
    let ports = if service.affinity_s == 0 { ports } else { ANY_PORT };
    let bits = match service.flags & SVC_MAGLEV == 0 || ports == 0 {
        true => env.random(),
        false => F::flow_hash(*client, ports),
    };
    let drawn = set.start.wrapping_add(maglev::below(bits, set.len));
    if service.affinity_s == 0 {
        return env.slot(drawn).unwrap_or(0);
    }
    let now = env.now_ns();
    let key = F::aff_key(*client, service.id, service.generation);
    let kept = env.affinity(&key).filter(|known| {
        now.wrapping_sub(known.last_ns) < service.affinity_s as u64 * 1_000_000_000
            && known.generation == env.generation(known.backend)
            && env.backend(known.backend).is_some_and(|backend| backend.flags & set.member != 0)
    });
    let id = match kept {
        Some(known) => known.backend,
        None => env.slot(drawn).unwrap_or(0),
    };
    env.set_affinity(&key, &AffValue { last_ns: now, backend: id, generation: env.generation(id) });
    id
}

/// Whether the source is to be replaced (B80). `stays`: the answer passes this node whatever the source, because of the
/// backend. Not inlined and by numbers alone: the verifier would follow its ways through all that comes after it, and a
/// BPF stack is small.
#[inline(never)]
fn masquerade(config: u32, service: u32, source: Source, stays: bool) -> bool {
    let all = service & SVC_MASQ_ALL != 0;
    let as_kube_proxy = if service & SVC_EXTERNAL == 0 {
        all || source.pod == Some(false)
    } else if service & SVC_LOCAL != 0 {
        source.host && source.pod != Some(true)
    } else {
        true
    };
    // the answer passes this node anyway: keep the client's address, unless asked not to
    let comes_back = stays || source.pod_facing;
    as_kube_proxy && (all || config & CFG_MASQ_LOCAL != 0 || !comes_back)
}
