//! One end of a connection, as buffers: what has come, what is to go, and the session between them.
//!
//! Incoming bytes are decrypted where they were received and copied once, to where they are wanted; outgoing ones are
//! gathered over as many records as one call of the kernel is worth. `rustls`' own buffers were rejected: they take 4 KiB
//! of the socket at a time. All is under one lock of the caller's, also what the socket is asked, since it never waits.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, ReadTraffic, UnbufferedStatus,
};
use rustls::{ClientConfig, CommonState, ServerConfig};

use crate::ALPN;
use crate::fault::Fault;

/// Bytes of a handshake, certificates and all, from a peer that has proved nothing.
pub const HANDSHAKE_LIMIT: usize = 128 << 10;
const RECORD: usize = (16 << 10) + 256 + 5; // the longest, its header too
const GATHERED: usize = 256 << 10; // received, and sealed, at a time: what a second cache holds
const EXTRA: usize = 4 << 10; // more than what the records of GATHERED bytes, and a change of keys, add

#[allow(clippy::large_enum_variant)] // a handful of ends, each behind a pointer anyway
enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// What one step of the session came to.
enum Turn {
    Going,         // something was done, and more may follow
    Wanting(bool), // nothing more without more bytes; whether the handshake is done
}

/// An end. Not for two threads at once.
pub struct End {
    side: Side,
    shaken: bool,
    came: usize,       // bytes of the handshake so far
    incoming: Vec<u8>, // received; valid from `from` to `to`
    from: usize,
    to: usize,
    plain: Vec<u8>, // decrypted, and not asked for yet; valid from `read`
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
            shaken: false,
            came: 0,
            incoming: Vec::new(),
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
        if self.failed.is_none() && !self.shaken {
            let mut stash = std::mem::take(&mut self.plain);
            let done = loop {
                match self.turn(&mut Sink::none(), &mut stash, &[]) {
                    Some((Turn::Wanting(done), _)) => break done,
                    Some((Turn::Going, _)) => {}
                    None => break false,
                }
            };
            self.plain = stash;
            let session: &CommonState = match &self.side {
                Side::Server(connection) => connection,
                Side::Client(connection) => connection,
            };
            // A server may have something to say before its client is known: that is not done.
            if done && !session.is_handshaking() {
                self.shaken = session.alpn_protocol() == Some(ALPN);
                if !self.shaken {
                    self.failed = Some(Fault::new("alpn", ""));
                }
            }
        }
        match &self.failed {
            Some(fault) => Err(fault.clone()),
            None => Ok(self.shaken),
        }
    }

    /// Take bytes of the other side's; of a handshake no more than HANDSHAKE_LIMIT.
    pub fn feed(&mut self, data: &[u8]) -> Result<(), Fault> {
        if !self.shaken {
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
        let room = &mut self.incoming[self.to..];
        // SAFETY: `room` is ours, and as long as is said.
        let got = retried(|| unsafe { libc::recv(socket, room.as_mut_ptr().cast(), room.len(), 0) })?;
        self.to += got;
        Ok(got)
    }

    fn make_room(&mut self, length: usize) {
        self.incoming.copy_within(self.from..self.to, 0);
        (self.from, self.to) = (0, self.to - self.from);
        if self.incoming.len() < self.to + length {
            self.incoming.resize(self.to + length, 0);
        }
    }

    /// Give what the other side has sent to `give`, piece after piece, no more than `wanted` bytes together: how many,
    /// 0 at the end of the stream, None when more must be fed or received first. A failure is told once all before it
    /// was given.
    pub fn read(&mut self, wanted: usize, give: &mut dyn FnMut(&[u8])) -> Result<Option<usize>, Fault> {
        let mut sink = Sink { left: wanted, give: Some(give) };
        self.read += sink.take(&self.plain[self.read..]);
        if self.read == self.plain.len() {
            self.plain.clear();
            self.read = 0;
            let mut stash = std::mem::take(&mut self.plain);
            while sink.left > 0 && self.failed.is_none() && !self.ended {
                if let Some((Turn::Wanting(_), _)) = self.turn(&mut sink, &mut stash, &[]) {
                    break;
                }
            }
            self.plain = stash;
        }
        match (wanted - sink.left, &self.failed) {
            (0, Some(fault)) => Err(fault.clone()),
            (0, None) if !self.ended && wanted > 0 => Ok(None),
            (given, _) => Ok(Some(given)),
        }
    }

    /// Whether something is there to be read, or to be looked at: a whole record.
    pub fn pending(&self) -> bool {
        let there = &self.incoming[self.from..self.to];
        let whole = |head: &[u8; 5]| there.len() >= 5 + usize::from(u16::from_be_bytes([head[3], head[4]]));
        self.read < self.plain.len() || there.first_chunk::<5>().is_some_and(whole)
    }

    /// Have some of `data` sent: the bytes taken, at least one where nothing is waiting to go.
    pub fn seal(&mut self, data: &[u8]) -> Result<usize, Fault> {
        let taken = data.len().min(GATHERED.saturating_sub(self.sealed - self.sent));
        let mut stash = std::mem::take(&mut self.plain);
        let result = loop {
            if taken == 0 {
                break Ok(0);
            }
            match self.turn(&mut Sink::none(), &mut stash, &data[..taken]) {
                Some((_, true)) => break Ok(taken),
                Some((Turn::Going, _)) => {}
                _ => break Err(self.failed.clone().unwrap_or_else(|| Fault::new("broken", "it has ended"))),
            }
        };
        self.plain = stash;
        result
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
            while let Some((Turn::Going, _)) = self.turn(&mut Sink::none(), &mut Vec::new(), &[]) {}
        }
        let taken = self.outgoing[self.sent..self.sealed].to_vec();
        (self.sent, self.sealed) = (0, 0);
        taken
    }

    /// One step of the session: a record read (to `sink`, and what that does not take to `stash`), a message written, or
    /// `data` sealed, which the second half of the answer tells. None: it has failed, now or before.
    fn turn(&mut self, sink: &mut Sink<'_>, stash: &mut Vec<u8>, data: &[u8]) -> Option<(Turn, bool)> {
        let there = &mut self.incoming[self.from..self.to];
        let out = Out { buffer: &mut self.outgoing, sealed: &mut self.sealed };
        let (discard, found) = match &mut self.side {
            Side::Server(connection) => {
                let UnbufferedStatus { discard, state, .. } = connection.process_tls_records(there);
                (discard, state.map_err(|e| Fault::from(&e)).and_then(|s| s.step(sink, stash, out, data)))
            }
            Side::Client(connection) => {
                let UnbufferedStatus { discard, state, .. } = connection.process_tls_records(there);
                (discard, state.map_err(|e| Fault::from(&e)).and_then(|s| s.step(sink, stash, out, data)))
            }
        };
        self.from += discard;
        match found {
            Ok(Step::Turn(turn, sealed)) => Some((turn, sealed)),
            Ok(Step::Ended) => {
                self.ended = true;
                Some((Turn::Going, false))
            }
            Err(fault) => {
                self.failed.get_or_insert(fault);
                None
            }
        }
    }
}

/// Takes a piece of plaintext, whole.
type Give<'a> = &'a mut dyn FnMut(&[u8]);

/// Where plaintext is wanted, as far as it is.
struct Sink<'a> {
    left: usize,
    give: Option<Give<'a>>,
}

impl Sink<'_> {
    fn none() -> Self {
        Self { left: 0, give: None }
    }

    fn take(&mut self, data: &[u8]) -> usize {
        let taken = data.len().min(self.left);
        if let (1.., Some(give)) = (taken, &mut self.give) {
            give(&data[..taken]);
        }
        self.left -= taken;
        taken
    }
}

enum Step {
    Turn(Turn, bool),
    Ended,
}

/// Where records are written behind each other.
struct Out<'a> {
    buffer: &'a mut Vec<u8>,
    sealed: &'a mut usize,
}

impl Out<'_> {
    /// Have `write` fill the free part, with as much room as it asks for.
    fn write<E>(
        &mut self,
        room: usize,
        mut write: impl FnMut(&mut [u8]) -> Result<usize, E>,
        asked: impl Fn(&E) -> Option<usize>,
    ) -> Result<(), E> {
        let mut room = room;
        loop {
            if self.buffer.len() < *self.sealed + room {
                self.buffer.resize(*self.sealed + room, 0);
            }
            match write(&mut self.buffer[*self.sealed..]) {
                Ok(written) => {
                    *self.sealed += written;
                    return Ok(());
                }
                Err(error) => match asked(&error) {
                    Some(more) if more > room => room = more,
                    _ => return Err(error),
                },
            }
        }
    }
}

/// What is done about a state; the same for both sides of a connection.
trait Stepped {
    fn step(self, sink: &mut Sink<'_>, stash: &mut Vec<u8>, out: Out<'_>, data: &[u8])
    -> Result<Step, Fault>;
}

macro_rules! stepped {
    ($data:ty) => {
        impl Stepped for ConnectionState<'_, '_, $data> {
            fn step(
                self,
                sink: &mut Sink<'_>,
                stash: &mut Vec<u8>,
                mut out: Out<'_>,
                data: &[u8],
            ) -> Result<Step, Fault> {
                Ok(match self {
                    ConnectionState::ReadTraffic(mut found) => {
                        read_all(&mut found, sink, stash)?;
                        Step::Turn(Turn::Going, false)
                    }
                    ConnectionState::EncodeTlsData(mut message) => {
                        out.write(RECORD, |room| message.encode(room), encode_asks)
                            .map_err(|e| Fault::new("broken", e.to_string()))?;
                        Step::Turn(Turn::Going, false)
                    }
                    ConnectionState::TransmitTlsData(written) => {
                        written.done(); // it waits in `outgoing`, before all that is sealed later
                        Step::Turn(Turn::Going, false)
                    }
                    ConnectionState::WriteTraffic(_) if data.is_empty() => {
                        Step::Turn(Turn::Wanting(true), false)
                    }
                    ConnectionState::WriteTraffic(mut session) => {
                        out.write(data.len() + EXTRA, |room| session.encrypt(data, room), encrypt_asks)
                            .map_err(|e| Fault::new("broken", e.to_string()))?;
                        Step::Turn(Turn::Going, true)
                    }
                    ConnectionState::BlockedHandshake => Step::Turn(Turn::Wanting(false), false),
                    ConnectionState::PeerClosed => Step::Ended,
                    other => return Err(Fault::new("broken", format!("{other:?}"))),
                })
            }
        }

        impl Records for ReadTraffic<'_, '_, $data> {
            fn next(&mut self) -> Option<Result<&[u8], Fault>> {
                let record = self.next_record()?;
                Some(record.map(|r| r.payload).map_err(|e| Fault::from(&e)))
            }
        }
    };
}

stepped!(ServerConnectionData);
stepped!(ClientConnectionData);

trait Records {
    fn next(&mut self) -> Option<Result<&[u8], Fault>>;
}

fn read_all(found: &mut dyn Records, sink: &mut Sink<'_>, stash: &mut Vec<u8>) -> Result<(), Fault> {
    while let Some(record) = found.next() {
        let record = record?;
        // In order: once something was left over, all behind it waits too.
        let taken = if stash.is_empty() { sink.take(record) } else { 0 };
        stash.extend_from_slice(&record[taken..]);
    }
    Ok(())
}

fn encode_asks(error: &EncodeError) -> Option<usize> {
    match error {
        EncodeError::InsufficientSize(InsufficientSizeError { required_size }) => Some(*required_size),
        EncodeError::AlreadyEncoded => None,
    }
}

fn encrypt_asks(error: &EncryptError) -> Option<usize> {
    match error {
        EncryptError::InsufficientSize(InsufficientSizeError { required_size }) => Some(*required_size),
        EncryptError::EncryptExhausted => None,
    }
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
