//! ABI types as the bytes the kernel sees.

use lb_common::abi::{
    Addr4, Addr6, Backend4, Backend6, CtKey4, CtKey6, CtValue4, CtValue6, Iface, LbConfig, NextHop, Peer,
    RangeKey4, RangeKey6, SkConnected, SkUdpKey, SkUdpValue, SvcKey4, SvcKey6, SvcValue,
};

use crate::desired::Prefix;

/// A type with exactly one representation as bytes.
pub(crate) trait Raw: Copy {
    /// Number of bytes.
    const LEN: usize;
    /// Appends the bytes.
    fn put(&self, to: &mut Vec<u8>);
    /// Reads them back; `bytes` has `LEN` of them.
    fn get(bytes: &[u8]) -> Self;

    /// The bytes.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::LEN);
        self.put(&mut bytes);
        bytes
    }
}

macro_rules! raw {
    ($($t:ty),* $(,)?) => {
        $(impl Raw for $t {
            const LEN: usize = size_of::<$t>();

            fn put(&self, to: &mut Vec<u8>) {
                let start: *const Self = self;
                // SAFETY: the type is `aya::Pod` (checked below), so all its bytes are initialised; the slice covers
                // exactly `self` and ends with this call.
                to.extend_from_slice(unsafe { std::slice::from_raw_parts(start.cast(), Self::LEN) });
            }

            fn get(bytes: &[u8]) -> Self {
                assert_eq!(bytes.len(), Self::LEN, "length of a value");
                // SAFETY: the type is `aya::Pod` (checked below), so any bytes are a value; the length was compared,
                // and `read_unaligned` asks for no alignment.
                unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() }
            }
        })*
        const _: () = {
            const fn is_pod<T: aya::Pod>() {}
            $(is_pod::<$t>();)*
        };
    };
}

raw!(
    Addr4,
    Addr6,
    Backend4,
    Backend6,
    CtKey4,
    CtKey6,
    CtValue4,
    CtValue6,
    Iface,
    LbConfig,
    NextHop,
    Peer,
    RangeKey4,
    RangeKey6,
    SkConnected,
    SkUdpKey,
    SkUdpValue,
    SvcKey4,
    SvcKey6,
    SvcValue,
    u32,
    u64,
    [u8; 4],
    [u8; 16],
);

/// A longest-prefix key: the number of bits in host order, then the key.
impl<K: Raw> Raw for Prefix<K> {
    const LEN: usize = 4 + K::LEN;

    fn put(&self, to: &mut Vec<u8>) {
        self.0.put(to);
        self.1.put(to);
    }

    fn get(bytes: &[u8]) -> Self {
        (u32::get(&bytes[..4]), K::get(&bytes[4..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_there_and_back() {
        let key = SvcKey4 { addr: [10, 96, 0, 1], port: [1, 187], proto: 6, _pad: 0 };
        assert_eq!(key.bytes(), [10, 96, 0, 1, 1, 187, 6, 0]);
        assert_eq!(SvcKey4::get(&key.bytes()), key);
        let prefix: Prefix<Addr4> = (12, Addr4 { addr: [10, 96, 0, 0] });
        assert_eq!(prefix.bytes(), [&12u32.to_ne_bytes()[..], &[10, 96, 0, 0]].concat());
        assert_eq!(Prefix::<Addr4>::get(&prefix.bytes()), prefix);
    }
}
