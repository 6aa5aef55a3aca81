//! IPsec policies of the kernel.

use crate::sockets::netlink::{Netlink, REQUEST};

const NETLINK_XFRM: isize = 6;
/// `XFRM_MSG_GETSPDINFO`.
const GET_SPD_INFO: u16 = 0x25;
/// Length of a netlink attribute's header.
const HEADER: usize = 4;

/// Whether the network namespace of the calling thread has any policy. A kernel without xfrm has none.
#[must_use]
pub fn policies() -> bool {
    let mut any = false;
    let asked = Netlink::open(NETLINK_XFRM)
        .and_then(|socket| socket.ask(GET_SPD_INFO, REQUEST, &[0xff; 4], |answer| any = in_use(answer)));
    asked.is_ok() && any
}

/// Reads `XFRMA_SPD_INFO` (the first attribute behind four bytes of flags): six counts, of which three are policies of
/// sockets and three of the host: in, out, forwarded, each.
fn in_use(answer: &[u8]) -> bool {
    let counts = answer.get(4 + HEADER..4 + HEADER + 12).unwrap_or_default();
    counts.iter().any(|byte| *byte != 0)
}

#[cfg(test)]
mod tests {
    use super::in_use;

    fn answer(counts: [u32; 6]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 0, 28, 0, 1, 0];
        bytes.extend(counts.iter().flat_map(|count| count.to_ne_bytes()));
        bytes
    }

    #[test]
    fn a_policy_in_any_direction_counts() {
        assert!(!in_use(&answer([0; 6])) && !in_use(&[]) && !in_use(&[0; 9]));
        for place in 0..3 {
            let mut counts = [0; 6];
            counts[place] = 1;
            assert!(in_use(&answer(counts)));
        }
    }
}
