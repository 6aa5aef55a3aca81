//! nfnetlink, as far as it is needed here: lists of nftables objects, counts of flows, and batches of changes.
//!
//! The agent's container has no `nft` and no `conntrack`, so the kernel is asked directly; the messages are the
//! crate's. Works on the network namespace of the calling thread.

use std::io;

use netlink_packet_core::{
    DefaultNla, DoneBuffer, ErrorBuffer, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, ParseableParametrized,
};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, Status};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// `NFNL_SUBSYS_NFTABLES`: whose changes a batch holds.
const NFTABLES: u16 = 10;
/// `CTA_STATUS_MASK` (kernel 5.15): which bits of `CTA_STATUS` count.
const CTA_STATUS_MASK: u16 = 26;
/// Changes in one batch: it must fit the default send buffer of 208 KiB.
const BATCH: usize = 500;
/// A list that a change interrupted is asked for anew so many times.
const TRIES: usize = 5;
/// `NLM_F_DUMP_INTR`.
const INTERRUPTED: u16 = 0x10;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// A change of nftables: the family of its table, and what.
pub(super) type Change = (NetfilterProtoFamily, NfTablesMessage);

/// A socket to netfilter.
#[derive(Debug)]
pub(super) struct Nfnl {
    socket: Socket,
    sequence: u32,
}

impl Nfnl {
    /// Opens it.
    ///
    /// # Errors
    /// No socket: the kernel has no netfilter, or it is not allowed.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// All nftables objects that `what` asks for, of all families. An object that the crate cannot read is left out:
    /// iptables and kube-proxy make none.
    ///
    /// # Errors
    /// The kernel refuses, or the tables changed during each of five tries.
    pub(super) fn list(&mut self, what: &NfTablesMessage) -> io::Result<Vec<Change>> {
        Ok(self.list_counted(what)?.0)
    }

    /// As [`Nfnl::list`]; the second part is the number of objects that the crate cannot read.
    pub(super) fn list_counted(&mut self, what: &NfTablesMessage) -> io::Result<(Vec<Change>, usize)> {
        for _ in 0..TRIES {
            let (mut found, mut unread) = (Vec::new(), 0);
            let whole =
                self.dump(NetfilterProtoFamily::Unspec, what.clone().into(), &mut |kind, payload| {
                    if let Ok(message) = NetfilterMessage::parse_with_param(payload, kind)
                        && let NetfilterMessageInner::NfTables(object) = message.inner
                    {
                        found.push((message.header.family, object));
                    } else {
                        unread += 1;
                    }
                })?;
            if whole {
                return Ok((found, unread));
            }
        }
        Err(io::Error::other("nftables changes all the time; try again when nobody writes rules"))
    }

    /// Counts the conntrack entries of a family whose destination was rewritten by netfilter.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn rewritten_flows(&mut self, family: NetfilterProtoFamily) -> io::Result<u64> {
        let bits = Status::DstNat;
        let mask = DefaultNla::new(CTA_STATUS_MASK, bits.bits().to_be_bytes().to_vec());
        let filter = vec![ConntrackAttribute::CtaStatus(bits), ConntrackAttribute::Other(mask)];
        let mut count = 0;
        // An interrupted list of flows is as good as any: they come and go.
        self.dump(family, ConntrackMessage::Get(filter).into(), &mut |_, _| count += 1)?;
        Ok(count)
    }

    /// Makes changes, in order, in transactions of up to 500; the first refused one undoes its transaction and ends.
    ///
    /// # Errors
    /// What the kernel said of the first change that it refused; earlier transactions stay.
    pub(super) fn change(&mut self, changes: &[Change]) -> io::Result<()> {
        changes.chunks(BATCH).try_for_each(|part| self.transaction(part))
    }

    fn transaction(&mut self, changes: &[Change]) -> io::Result<()> {
        let border = |message: ControlMessage| {
            NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES), message)
        };
        let mut bytes = self.bytes(NLM_F_REQUEST, border(ControlMessage::BatchBegin));
        for (family, message) in changes {
            let creates = matches!(
                message,
                NfTablesMessage::NewTable(_) | NfTablesMessage::NewChain(_) | NfTablesMessage::NewRule(_)
            );
            let flags = NLM_F_REQUEST | NLM_F_ACK | if creates { NLM_F_CREATE } else { 0 };
            let message = NetfilterMessage::new(NetfilterHeader::new(*family, 0, 0), message.clone());
            bytes.extend(self.bytes(flags, message));
        }
        bytes.extend(self.bytes(NLM_F_REQUEST, border(ControlMessage::BatchEnd)));
        self.socket.send(&bytes, 0)?;
        // The kernel has done it all by now: what it has to say waits already.
        self.socket.set_non_blocking(true)?;
        let said = self.acknowledged();
        self.socket.set_non_blocking(false)?;
        said
    }

    /// Reads all that waits; the first error counts.
    fn acknowledged(&mut self) -> io::Result<()> {
        let mut first = Ok(());
        loop {
            let bytes = match self.socket.recv_from_full() {
                Ok((bytes, _)) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return first,
                Err(error) => return Err(error),
            };
            for_each(&bytes, |kind, _, payload| {
                if kind == ERROR && first.is_ok() {
                    first = refused(payload);
                }
            });
        }
    }

    /// Hands type and payload of each answer to `take`; false = the list changed meanwhile.
    fn dump(
        &mut self,
        family: NetfilterProtoFamily,
        what: NetfilterMessageInner,
        take: &mut dyn FnMut(u16, &[u8]),
    ) -> io::Result<bool> {
        let request = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), what);
        let bytes = self.bytes(NLM_F_REQUEST | NLM_F_DUMP, request);
        self.socket.send(&bytes, 0)?;
        let (mut whole, mut end) = (true, None);
        while end.is_none() {
            let (bytes, _) = self.socket.recv_from_full()?;
            for_each(&bytes, |kind, flags, payload| {
                whole &= flags & INTERRUPTED == 0;
                match kind {
                    ERROR => end = Some(refused(payload)),
                    DONE => end = Some(done(payload)),
                    kind => take(kind, payload),
                }
            });
        }
        end.unwrap_or(Ok(())).map(|()| whole)
    }

    fn bytes(&mut self, flags: u16, message: NetfilterMessage) -> Vec<u8> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }
}

/// Type, flags and payload of each message of a datagram.
fn for_each(mut bytes: &[u8], mut take: impl FnMut(u16, u16, &[u8])) {
    while let Ok(message) = NetlinkBuffer::new_checked(bytes) {
        take(message.message_type(), message.flags(), message.payload());
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX).next_multiple_of(4);
        match bytes.get(length..) {
            Some(rest) => bytes = rest,
            None => return,
        }
    }
}

fn refused(payload: &[u8]) -> io::Result<()> {
    let code = ErrorBuffer::new_checked(payload).ok().and_then(|error| error.code());
    code.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code.get().saturating_abs())))
}

fn done(payload: &[u8]) -> io::Result<()> {
    match DoneBuffer::new_checked(payload).map_or(0, |end| end.code()) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_abs())),
    }
}
