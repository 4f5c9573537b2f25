//! One end of a connection, as buffers: what has come, what is to go, and the session between them.
//!
//! Incoming bytes are decrypted where they were received and copied once, to where they are wanted; outgoing ones are
//! copied once, to where they are encrypted, and gathered over as many records as one call of the kernel is worth.
//! `rustls` has the handshake, [`Records`] what follows it. `rustls`' own buffers were rejected: they take 4 KiB of the
//! socket at a time. All is under one lock of the caller's, also what the socket is asked, since it never waits.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, InsufficientSizeError, ReadTraffic, UnbufferedStatus,
};
use rustls::{ClientConfig, CommonState, ServerConfig};

use crate::ALPN;
use crate::fault::Fault;
use crate::records::{Brought, HEADER, Keys, RECORD, Records};

/// Bytes of a handshake, certificates and all, from a peer that has proved nothing.
pub const HANDSHAKE_LIMIT: usize = 128 << 10;
const GATHERED: usize = 256 << 10; // received, and sealed, at a time: what a second cache holds

#[allow(clippy::large_enum_variant)] // a handful of ends, each behind a pointer anyway
enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
    Shaken(Records),
    Failed, // while its hands were taken over
}

/// What one step of a handshake came to.
enum Turn {
    Going,         // something was done, and more may follow
    Wanting(bool), // nothing more without more bytes; whether the handshake is done
}

/// An end. Not for two threads at once.
pub struct End {
    side: Side,
    came: usize,       // bytes of the handshake so far
    incoming: Vec<u8>, // received; valid from `from` to `to`, and opened before that
    opened: usize,     // plaintext that was not asked for yet, so many bytes that end at `opened_to`
    opened_to: usize,
    from: usize,
    to: usize,
    plain: Vec<u8>, // what came with the end of the handshake, and was not asked for yet; valid from `read`
    read: usize,
    outgoing: Vec<u8>, // sealed; valid from `sent` to `sealed`
    sent: usize,
    sealed: usize,
    ended: bool, // the other side has said that nothing more comes
    failed: Option<Fault>,
}

impl End {
    pub(crate) fn server(config: Arc<ServerConfig>) -> Result<Self, Fault> {
        Ok(Self::new(Side::Server(UnbufferedServerConnection::new(config).map_err(|e| Fault::from(&e))?)))
    }

    pub(crate) fn client(config: Arc<ClientConfig>, host: ServerName<'static>) -> Result<Self, Fault> {
        let made = UnbufferedClientConnection::new(config, host);
        Ok(Self::new(Side::Client(made.map_err(|e| Fault::from(&e))?)))
    }

    fn new(side: Side) -> Self {
        Self {
            side,
            came: 0,
            incoming: Vec::new(),
            opened: 0,
            opened_to: 0,
            from: 0,
            to: 0,
            plain: Vec::new(),
            read: 0,
            outgoing: Vec::new(),
            sent: 0,
            sealed: 0,
            ended: false,
            failed: None,
        }
    }

    /// Go on with the handshake, as far as what has come allows; whether it is done.
    pub fn shake(&mut self) -> Result<bool, Fault> {
        if self.failed.is_none() && !self.shaken() {
            let done = loop {
                match self.turn() {
                    Some(Turn::Wanting(done)) => break done,
                    Some(Turn::Going) => {}
                    None => break false,
                }
            };
            let session: Option<&CommonState> = match &self.side {
                Side::Server(connection) => Some(connection),
                Side::Client(connection) => Some(connection),
                Side::Shaken(_) | Side::Failed => None,
            };
            // A server may have something to say before its client is known: that is not done.
            if let Some(session) = session.filter(|s| done && !s.is_handshaking()) {
                if session.alpn_protocol() == Some(ALPN) {
                    self.take_over();
                } else {
                    self.failed = Some(Fault::new("alpn", ""));
                }
            }
        }
        match &self.failed {
            Some(fault) => Err(fault.clone()),
            None => Ok(self.shaken()),
        }
    }

    fn shaken(&self) -> bool {
        matches!(self.side, Side::Shaken(_))
    }

    /// The handshake is done, and nothing of it waits in `rustls`: go on with its keys.
    fn take_over(&mut self) {
        let made = match std::mem::replace(&mut self.side, Side::Failed) {
            Side::Server(c) => c.dangerous_into_kernel_connection().map(|(s, keys)| (s, Keys::Server(keys))),
            Side::Client(c) => c.dangerous_into_kernel_connection().map(|(s, keys)| (s, Keys::Client(keys))),
            shaken => {
                self.side = shaken;
                return;
            }
        };
        match made.map_err(|e| Fault::from(&e)).and_then(|(secrets, keys)| Records::new(keys, secrets)) {
            Ok(records) => self.side = Side::Shaken(records),
            Err(fault) => self.failed = Some(fault),
        }
    }

    /// Take bytes of the other side's; of a handshake no more than HANDSHAKE_LIMIT.
    pub fn feed(&mut self, data: &[u8]) -> Result<(), Fault> {
        if !self.shaken() {
            self.came += data.len();
            if self.came > HANDSHAKE_LIMIT {
                return Err(Fault::new("endless", ""));
            }
        }
        self.make_room(data.len());
        self.incoming[self.to..self.to + data.len()].copy_from_slice(data);
        self.to += data.len();
        Ok(())
    }

    /// Receive from a non-blocking socket, once: bytes, 0 at the end of the stream. After the handshake.
    pub fn receive(&mut self, socket: RawFd) -> io::Result<usize> {
        self.make_room(GATHERED);
        let room = &mut self.incoming[self.to..self.to + GATHERED];
        // SAFETY: `room` is ours, and as long as is said.
        let got = retried(|| unsafe { libc::recv(socket, room.as_mut_ptr().cast(), room.len(), 0) })?;
        self.to += got;
        Ok(got)
    }

    fn make_room(&mut self, length: usize) {
        if self.opened == 0 {
            self.incoming.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        if self.incoming.len() < self.to + length {
            self.incoming.resize(self.to + length, 0);
        }
    }

    /// Give what the other side has sent to `give`, piece after piece, no more than `wanted` bytes together: how many,
    /// 0 at the end of the stream, None when more must be fed or received first. A failure is told once all before it
    /// was given. After the handshake.
    pub fn read(&mut self, wanted: usize, give: &mut dyn FnMut(&[u8])) -> Result<Option<usize>, Fault> {
        let mut left = wanted;
        let early = left.min(self.plain.len() - self.read);
        if early > 0 {
            give(&self.plain[self.read..self.read + early]);
            (self.read, left) = (self.read + early, left - early);
            if self.read == self.plain.len() {
                (self.plain, self.read) = (Vec::new(), 0);
            }
        }
        while left > 0 {
            if self.opened == 0 {
                match self.open() {
                    Ok(true) => continue, // which may have brought nothing
                    Ok(false) => break,
                    Err(fault) => {
                        self.failed.get_or_insert(fault);
                        break;
                    }
                }
            }
            let taken = left.min(self.opened);
            let at = self.opened_to - self.opened;
            give(&self.incoming[at..at + taken]);
            (self.opened, left) = (self.opened - taken, left - taken);
        }
        match (wanted - left, &self.failed) {
            (0, Some(fault)) => Err(fault.clone()),
            (0, None) if !self.ended && wanted > 0 => Ok(None),
            (given, _) => Ok(Some(given)),
        }
    }

    /// Open the next record, if it is there, and there is to be one.
    fn open(&mut self) -> Result<bool, Fault> {
        let Side::Shaken(records) = &mut self.side else { return Ok(false) };
        if self.ended || self.failed.is_some() {
            return Ok(false);
        }
        let there = &mut self.incoming[self.from..self.to];
        let Some(length) = Records::whole(there)? else { return Ok(false) };
        match records.open(&mut there[..length])? {
            Brought::Data(bytes) => {
                self.opened = bytes;
                self.opened_to = self.from + HEADER + bytes;
            }
            Brought::Nothing => {}
            Brought::End => self.ended = true,
        }
        self.from += length;
        Ok(true)
    }

    /// Whether something is there to be read, or to be looked at: a whole record, or what is none.
    pub fn pending(&self) -> bool {
        let here = self.opened > 0 || self.read < self.plain.len();
        here || !matches!(Records::whole(&self.incoming[self.from..self.to]), Ok(None))
    }

    /// Have some of `length` bytes sent, which `fill` puts where they are wanted (from a place on): the bytes taken, at
    /// least one where nothing is waiting to go. After the handshake.
    pub fn seal(&mut self, length: usize, fill: &mut dyn FnMut(usize, &mut [u8])) -> Result<usize, Fault> {
        if let Some(fault) = &self.failed {
            return Err(fault.clone());
        }
        let Side::Shaken(records) = &mut self.side else { return Err(Fault::new("broken", "no session")) };
        let taken = length.min(GATHERED.saturating_sub(self.sealed - self.sent));
        if taken == 0 {
            return Ok(0);
        }
        self.outgoing.copy_within(self.sent..self.sealed, 0);
        (self.sent, self.sealed) = (0, self.sealed - self.sent);
        let room = Records::room(taken);
        if self.outgoing.len() < self.sealed + room {
            self.outgoing.resize((self.sealed + room).max(Records::room(GATHERED)), 0);
        }
        match records.seal(taken, fill, &mut self.outgoing[self.sealed..]) {
            Ok(written) => self.sealed += written,
            Err(fault) => return Err(self.failed.get_or_insert(fault).clone()),
        }
        Ok(taken)
    }

    /// Send to a non-blocking socket; whether all has gone.
    pub fn send(&mut self, socket: RawFd) -> io::Result<bool> {
        while self.sent < self.sealed {
            let rest = &self.outgoing[self.sent..self.sealed];
            // SAFETY: `rest` is ours, and as long as is said.
            let sent = retried(|| unsafe {
                libc::send(socket, rest.as_ptr().cast(), rest.len(), libc::MSG_NOSIGNAL)
            });
            match sent {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        (self.sent, self.sealed) = (0, 0);
        Ok(true)
    }

    /// What waits to go: of a handshake, an alert, or what was sealed.
    pub fn take_outgoing(&mut self) -> Vec<u8> {
        if self.failed.is_some() {
            // The alert that tells the other side why.
            while let Some(Turn::Going) = self.turn() {}
        }
        let taken = self.outgoing[self.sent..self.sealed].to_vec();
        (self.sent, self.sealed) = (0, 0);
        taken
    }

    /// One step of a handshake: a message read or written, or what came behind the last one put into `plain`. None: it
    /// has failed, now or before, or is over.
    fn turn(&mut self) -> Option<Turn> {
        let there = &mut self.incoming[self.from..self.to];
        let out = Out { buffer: &mut self.outgoing, sealed: &mut self.sealed };
        let (discard, found) = match &mut self.side {
            Side::Server(connection) => {
                let UnbufferedStatus { discard, state, .. } = connection.process_tls_records(there);
                (discard, state.map_err(|e| Fault::from(&e)).and_then(|s| s.step(&mut self.plain, out)))
            }
            Side::Client(connection) => {
                let UnbufferedStatus { discard, state, .. } = connection.process_tls_records(there);
                (discard, state.map_err(|e| Fault::from(&e)).and_then(|s| s.step(&mut self.plain, out)))
            }
            Side::Shaken(_) | Side::Failed => return None,
        };
        self.from += discard;
        match found {
            Ok(Step::Turn(turn)) => Some(turn),
            Ok(Step::Ended) => {
                self.ended = true;
                Some(Turn::Going)
            }
            Err(fault) => {
                self.failed.get_or_insert(fault);
                None
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn records(&mut self) -> &mut Records {
        match &mut self.side {
            Side::Shaken(records) => records,
            _ => panic!("a handshake is not done"),
        }
    }
}

enum Step {
    Turn(Turn),
    Ended,
}

/// Where records are written behind each other.
struct Out<'a> {
    buffer: &'a mut Vec<u8>,
    sealed: &'a mut usize,
}

impl Out<'_> {
    /// Have `write` fill the free part, with as much room as it asks for.
    fn write(
        &mut self,
        mut write: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
    ) -> Result<(), EncodeError> {
        let mut room = RECORD;
        loop {
            if self.buffer.len() < *self.sealed + room {
                self.buffer.resize(*self.sealed + room, 0);
            }
            match write(&mut self.buffer[*self.sealed..]) {
                Ok(written) => {
                    *self.sealed += written;
                    return Ok(());
                }
                Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size }))
                    if required_size > room =>
                {
                    room = required_size;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// What is done about a state of a handshake; the same for both sides of a connection.
trait Stepped {
    fn step(self, plain: &mut Vec<u8>, out: Out<'_>) -> Result<Step, Fault>;
}

macro_rules! stepped {
    ($data:ty) => {
        impl Stepped for ConnectionState<'_, '_, $data> {
            fn step(self, plain: &mut Vec<u8>, mut out: Out<'_>) -> Result<Step, Fault> {
                Ok(match self {
                    ConnectionState::ReadTraffic(mut found) => {
                        read_all(&mut found, plain)?;
                        Step::Turn(Turn::Going)
                    }
                    ConnectionState::EncodeTlsData(mut message) => {
                        out.write(|room| message.encode(room))
                            .map_err(|e| Fault::new("broken", e.to_string()))?;
                        Step::Turn(Turn::Going)
                    }
                    ConnectionState::TransmitTlsData(written) => {
                        written.done(); // it waits in `outgoing`, before all that is sealed later
                        Step::Turn(Turn::Going)
                    }
                    ConnectionState::WriteTraffic(_) => Step::Turn(Turn::Wanting(true)),
                    ConnectionState::BlockedHandshake => Step::Turn(Turn::Wanting(false)),
                    ConnectionState::PeerClosed => Step::Ended,
                    other => return Err(Fault::new("broken", format!("{other:?}"))),
                })
            }
        }

        impl Plain for ReadTraffic<'_, '_, $data> {
            fn next(&mut self) -> Option<Result<&[u8], Fault>> {
                let record = self.next_record()?;
                Some(record.map(|r| r.payload).map_err(|e| Fault::from(&e)))
            }
        }
    };
}

stepped!(ServerConnectionData);
stepped!(ClientConnectionData);

trait Plain {
    fn next(&mut self) -> Option<Result<&[u8], Fault>>;
}

fn read_all(found: &mut dyn Plain, plain: &mut Vec<u8>) -> Result<(), Fault> {
    while let Some(record) = found.next() {
        plain.extend_from_slice(record?);
    }
    Ok(())
}

/// A system call's answer; tried again when a signal came between.
fn retried(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(done) = usize::try_from(call()) {
            return Ok(done);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
