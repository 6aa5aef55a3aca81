//! The kernel's routes and neighbours.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use lb_common::family::Family;
use lb_common::switch::Neighbour;

/// `struct bpf_fib_lookup`, its unions as they are used here.
#[repr(C, align(8))]
#[derive(Default)]
struct Lookup {
    family: u8,
    protocol: u8,
    sport: [u8; 2],
    dport: [u8; 2],
    total_length: u16,
    /// In: where the packet came in; out: where it leaves.
    ifindex: u32,
    tos: u32,
    src: [u8; 16],
    dst: [u8; 16],
    vlan: u32,
    smac: [u8; 6],
    dmac: [u8; 6],
}
const _: () = assert!(size_of::<Lookup>() == 64);

pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;

/// Where a packet from `src` to `dst` that came in by `ifindex` would be sent. Unknown if it would not be forwarded, or
/// the neighbour is not resolved.
#[inline(always)]
pub fn neighbour<F: Family>(skb: *mut __sk_buff, ifindex: u32, src: F::Addr, dst: F::Addr) -> Neighbour {
    let mut lookup = Lookup {
        family: if F::V6 { AF_INET6 } else { AF_INET },
        ifindex,
        src: F::wide(src).addr,
        dst: F::wide(dst).addr,
        ..Lookup::default()
    };
    // SAFETY: `skb` is the program's context; the structure has the helper's layout and size.
    let result =
        unsafe { bpf_fib_lookup(skb.cast(), (&raw mut lookup).cast(), size_of::<Lookup>() as i32, 0) };
    if result != 0 {
        return Neighbour::default();
    }
    Neighbour { ifindex: lookup.ifindex, mac: lookup.dmac, _pad: [0; 2] }
}
