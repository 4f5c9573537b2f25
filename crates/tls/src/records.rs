//! The records of a session whose handshake is done: sealed and opened where they lie, with the keys that `rustls` has
//! agreed on, its ciphers and its schedule of keys.
//!
//! `rustls` itself copies every byte twice more in each direction (into a record of its own, and out of it), which took
//! more time than the cipher. Its interface for kernels hands the keys over and goes on making new ones; what is left to
//! do is what a kernel does: headers, numbers, alerts, and changes of keys. Everything else that could come in a
//! handshake's message is refused: our ends hand out no tickets and ask for no certificate later.

use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::{AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter};
use rustls::kernel::KernelConnection;
use rustls::quic::PacketKey;
use rustls::server::ServerConnectionData;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets, InvalidMessage,
    ProtocolVersion, SupportedCipherSuite, Tls13CipherSuite,
};

use crate::fault::Fault;

/// Bytes before the contents of a record.
pub(crate) const HEADER: usize = 5;
/// Plaintext of a record, at most.
pub(crate) const FRAGMENT: usize = 16 << 10;
/// A record, at most, its header too.
pub(crate) const RECORD: usize = HEADER + FRAGMENT + 256;
/// What a record is longer than its plaintext.
pub(crate) const MORE: usize = HEADER + 1 + TAG;
const TAG: usize = 16; // of every suite of TLS 1.3 that there is here
const SEALED_BY_ONE_KEY: u64 = 1 << 23; // records; half of what AES-GCM allows, 128 GiB if they are full
const KEY_UPDATE: u8 = 24;

/// What makes new keys.
pub(crate) enum Keys {
    Server(KernelConnection<ServerConnectionData>),
    Client(KernelConnection<ClientConnectionData>),
}

/// What a record brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Brought {
    /// Plaintext, of so many bytes from the end of the header on.
    Data(usize),
    /// Nothing for whoever reads.
    Nothing,
    /// The other side has said that nothing more comes.
    End,
}

/// See the module. Not for two threads at once.
pub(crate) struct Records {
    keys: Keys,
    suite: &'static Tls13CipherSuite,
    // Nonces and additional data of a QUIC packet are made as those of a TLS record; this is the way in that needs no
    // memory of its own.
    seal: Box<dyn PacketKey>,
    seal_number: u64,
    sealed_by_one_key: u64,
    open: Box<dyn MessageDecrypter>,
    open_number: u64,
    owes_update: bool, // the other side has asked for new keys
}

impl Records {
    pub(crate) fn new(keys: Keys, secrets: ExtractedSecrets) -> Result<Self, Fault> {
        let suite = match &keys {
            Keys::Server(keys) => keys.negotiated_cipher_suite(),
            Keys::Client(keys) => keys.negotiated_cipher_suite(),
        };
        let SupportedCipherSuite::Tls13(suite) = suite; // there are no others here
        let ((seal_number, seal), (open_number, open)) = (secrets.tx, secrets.rx);
        Ok(Self {
            keys,
            suite,
            seal: sealing(suite, seal)?,
            seal_number,
            sealed_by_one_key: SEALED_BY_ONE_KEY.min(suite.common.confidentiality_limit / 2),
            open: opening(suite, open)?,
            open_number,
            owes_update: false,
        })
    }

    /// Bytes that `length` bytes take up when they are sealed, at most.
    pub(crate) fn room(length: usize) -> usize {
        length + (length.div_ceil(FRAGMENT) + 1) * MORE + 5 // one for a change of keys
    }

    /// Seal `length` bytes, which `fill` puts where they are wanted (from a place on), into `out`: the bytes written.
    /// `out` has [`Records::room`] for them.
    pub(crate) fn seal(
        &mut self,
        length: usize,
        fill: &mut dyn FnMut(usize, &mut [u8]),
        out: &mut [u8],
    ) -> Result<usize, Fault> {
        let mut at = 0;
        if self.owes_update || self.seal_number >= self.sealed_by_one_key {
            at += self.update_sealing(out)?;
        }
        let mut taken = 0;
        while taken < length {
            let piece = (length - taken).min(FRAGMENT);
            let record = &mut out[at..];
            fill(taken, &mut record[HEADER..HEADER + piece]);
            at += self.seal_record(ContentType::ApplicationData, piece, record)?;
            taken += piece;
        }
        Ok(at)
    }

    /// Make a record of the `length` bytes that lie behind the room for its header: its length.
    fn seal_record(&mut self, kind: ContentType, length: usize, out: &mut [u8]) -> Result<usize, Fault> {
        let end = HEADER + length + 1;
        let whole = end + TAG;
        let header = header(whole - HEADER);
        out[..HEADER].copy_from_slice(&header);
        out[end - 1] = u8::from(kind);
        let tag = self
            .seal
            .encrypt_in_place(self.seal_number, &header, &mut out[HEADER..end])
            .map_err(|e| Fault::from(&e))?;
        out[end..whole].copy_from_slice(tag.as_ref());
        self.seal_number += 1;
        Ok(whole)
    }

    /// Say that new keys follow, and take them.
    fn update_sealing(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        out[HEADER..HEADER + 5].copy_from_slice(&[KEY_UPDATE, 0, 0, 1, 0]); // the other side need not change its own
        let written = self.seal_record(ContentType::Handshake, 5, out)?;
        let updated = match &mut self.keys {
            Keys::Server(keys) => keys.update_tx_secret(),
            Keys::Client(keys) => keys.update_tx_secret(),
        };
        let (number, secrets) = updated.map_err(|e| Fault::from(&e))?;
        self.seal = sealing(self.suite, secrets)?;
        self.seal_number = number;
        self.owes_update = false;
        Ok(written)
    }

    /// Bytes of the record that `came` begins with, if it is all there.
    pub(crate) fn whole(came: &[u8]) -> Result<Option<usize>, Fault> {
        let Some(&[kind, _, _, high, low]) = came.first_chunk::<HEADER>() else { return Ok(None) };
        let length = HEADER + usize::from(u16::from_be_bytes([high, low]));
        if kind != u8::from(ContentType::ApplicationData) {
            return Err(Fault::from(&Error::InvalidMessage(InvalidMessage::InvalidContentType)));
        }
        if length > RECORD {
            return Err(Fault::from(&Error::InvalidMessage(InvalidMessage::MessageTooLarge)));
        }
        Ok((came.len() >= length).then_some(length))
    }

    /// Open `record`, a whole one, where it lies. The end of a session that is not in order is a fault.
    pub(crate) fn open(&mut self, record: &mut [u8]) -> Result<Brought, Fault> {
        let sealed = InboundOpaqueMessage::new(
            ContentType::ApplicationData,
            ProtocolVersion::TLSv1_2,
            &mut record[HEADER..],
        );
        let message = self.open.decrypt(sealed, self.open_number).map_err(|e| Fault::from(&e))?;
        self.open_number += 1;
        match (message.typ, message.payload) {
            (ContentType::ApplicationData, data) => Ok(Brought::Data(data.len())),
            (ContentType::Alert, [_, 0]) => Ok(Brought::End),
            (ContentType::Alert, [_, alert]) => {
                Err(Fault::from(&Error::AlertReceived(AlertDescription::from(*alert))))
            }
            (ContentType::Handshake, [KEY_UPDATE, 0, 0, 1, asks @ 0..=1]) => {
                self.owes_update |= *asks == 1;
                self.update_opening()?;
                Ok(Brought::Nothing)
            }
            _ => Err(Fault::new("foreign", "a message that has no place in this session")),
        }
    }

    fn update_opening(&mut self) -> Result<(), Fault> {
        let updated = match &mut self.keys {
            Keys::Server(keys) => keys.update_rx_secret(),
            Keys::Client(keys) => keys.update_rx_secret(),
        };
        let (number, secrets) = updated.map_err(|e| Fault::from(&e))?;
        self.open = opening(self.suite, secrets)?;
        self.open_number = number;
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn change_keys_after(&mut self, records: u64) {
        self.sealed_by_one_key = records;
    }
}

fn header(length: usize) -> [u8; HEADER] {
    let [high, low] = (length as u16).to_be_bytes();
    [u8::from(ContentType::ApplicationData), 3, 3, high, low]
}

fn key_and_iv(secrets: ConnectionTrafficSecrets) -> Result<(AeadKey, Iv), Fault> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok((key, iv)),
        _ => Err(Fault::new("broken", "a cipher that is not known here")),
    }
}

fn sealing(suite: &Tls13CipherSuite, secrets: ConnectionTrafficSecrets) -> Result<Box<dyn PacketKey>, Fault> {
    let (key, iv) = key_and_iv(secrets)?;
    let algorithm = suite.quic.ok_or_else(|| Fault::new("broken", "a cipher that cannot seal in place"))?;
    let made = algorithm.packet_key(key, iv);
    if made.tag_len() == TAG { Ok(made) } else { Err(Fault::new("broken", "a tag of another length")) }
}

fn opening(
    suite: &Tls13CipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageDecrypter>, Fault> {
    let (key, iv) = key_and_iv(secrets)?;
    Ok(suite.aead_alg.decrypter(key, iv))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustls::pki_types::ServerName;

    use super::*;
    use crate::{End, Identity};

    // Made by `sustain keys` for 100 years, for these tests alone.
    const CERTIFICATE: &[u8] = include_bytes!("testdata/host.pem");
    const KEY: &[u8] = include_bytes!("testdata/host.key");
    const CA: &[u8] = include_bytes!("testdata/ca.pem");

    fn identity() -> Identity {
        Identity::load(CERTIFICATE, KEY, CA).unwrap()
    }

    /// Two ends of ours that have shaken hands.
    fn ends() -> (End, End) {
        let identity = identity();
        let (mut server, mut client) = (identity.server().unwrap(), identity.client("127.0.0.1").unwrap());
        let mut done = [false, false];
        while done != [true, true] {
            done[0] = client.shake().unwrap();
            server.feed(&client.take_outgoing()).unwrap();
            done[1] = server.shake().unwrap();
            client.feed(&server.take_outgoing()).unwrap();
        }
        (server, client)
    }

    /// An end of ours, and a client that is all of `rustls`'.
    fn strangers() -> (End, rustls::ClientConnection) {
        let identity = identity();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut client = rustls::ClientConnection::new(identity.client.clone(), name).unwrap();
        let mut server = identity.server().unwrap();
        while !server.shake().unwrap() || client.is_handshaking() {
            server.feed(&written(&mut client)).unwrap();
            server.shake().unwrap();
            tell(&mut client, &server.take_outgoing());
        }
        (server, client)
    }

    fn written(client: &mut rustls::ClientConnection) -> Vec<u8> {
        let mut out = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut out).unwrap();
        }
        out
    }

    fn tell(client: &mut rustls::ClientConnection, mut data: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        while !data.is_empty() {
            client.read_tls(&mut data).unwrap();
            client.process_new_packets().unwrap();
            let _ = client.reader().read_to_end(&mut plain); // "would block" once it has given all
        }
        plain
    }

    fn sealed(end: &mut End, data: &[u8]) -> Vec<u8> {
        let (mut at, mut out) = (0, Vec::new());
        while at < data.len() {
            at += end
                .seal(data.len() - at, &mut |from, room| {
                    room.copy_from_slice(&data[at + from..at + from + room.len()]);
                })
                .unwrap();
            out.extend(end.take_outgoing());
        }
        out
    }

    /// All that can be read, `step` bytes at a time, and how it ended.
    fn read(end: &mut End, step: usize) -> (Vec<u8>, Result<Option<usize>, Fault>) {
        let mut found = Vec::new();
        loop {
            match end.read(step, &mut |data| found.extend_from_slice(data)) {
                Ok(Some(1..)) => {}
                other => return (found, other),
            }
        }
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 31 + i / 255) as u8).collect()
    }

    /// What a record of that kind with those contents does to the other end.
    fn hears(kind: ContentType, contents: &[u8]) -> Result<Option<usize>, Fault> {
        let (mut server, mut client) = ends();
        let mut out = vec![0; RECORD];
        out[HEADER..HEADER + contents.len()].copy_from_slice(contents);
        let length = client.records().seal_record(kind, contents.len(), &mut out).unwrap();
        server.feed(&out[..length]).unwrap();
        assert!(server.pending());
        let (found, end) = read(&mut server, 100);
        assert_eq!(found, b"");
        end
    }

    #[test]
    fn both_ways_with_another_implementation() {
        let (mut here, mut there) = strangers();
        for length in [1, 100, FRAGMENT - 1, FRAGMENT, FRAGMENT + 1, 300_000] {
            let data = bytes(length);
            assert_eq!(tell(&mut there, &sealed(&mut here, &data)), data, "{length}");
            there.writer().write_all(&data[..length.min(60_000)]).unwrap();
            here.feed(&written(&mut there)).unwrap();
            let (found, end) = read(&mut here, 777);
            assert_eq!((found.as_slice(), end), (&data[..length.min(60_000)], Ok(None)), "{length}");
        }
        assert!(!here.pending());
    }

    #[test]
    fn records_come_in_any_pieces() {
        let (mut here, mut there) = ends();
        let data = bytes(50_000);
        let mut found = Vec::new();
        for piece in sealed(&mut there, &data).chunks(997) {
            here.feed(piece).unwrap();
            // Never all of it, so that what was opened before has to stay while more comes.
            let _ = here.read(600, &mut |data| found.extend_from_slice(data)).unwrap();
        }
        found.extend(read(&mut here, 1).0);
        assert_eq!(found, data);
    }

    #[test]
    fn keys_are_changed_before_one_is_worn_out() {
        let (mut here, mut there) = strangers();
        here.records().change_keys_after(3);
        let data = bytes(FRAGMENT);
        for _ in 0..20 {
            assert_eq!(tell(&mut there, &sealed(&mut here, &data)), data);
            assert!(here.records().seal_number <= 4);
        }
    }

    #[test]
    fn the_room_is_what_is_needed_with_a_change_of_keys() {
        let (mut here, _) = ends();
        here.records().change_keys_after(0);
        for length in [1, FRAGMENT, FRAGMENT + 1, 128 << 10] {
            let mut out = vec![0; Records::room(length)];
            let written = here.records().seal(length, &mut |_, room| room.fill(1), &mut out).unwrap();
            assert_eq!(written, out.len());
        }
    }

    #[test]
    fn keys_are_changed_when_the_other_side_asks() {
        let (mut here, mut there) = strangers();
        for round in 0..3 {
            there.refresh_traffic_keys().unwrap();
            there.writer().write_all(b"after it").unwrap();
            here.feed(&written(&mut there)).unwrap();
            let (found, end) = read(&mut here, 100);
            assert_eq!((found.as_slice(), end), (&b"after it"[..], Ok(None)), "{round}");
            assert!(here.records().owes_update);
            assert_eq!(tell(&mut there, &sealed(&mut here, b"so do we")), b"so do we");
            assert!(!here.records().owes_update);
            assert_eq!(here.records().seal_number, 1, "with new keys");
        }
    }

    #[test]
    fn an_end_is_one_that_was_announced() {
        let (mut here, mut there) = strangers();
        there.writer().write_all(b"last").unwrap();
        there.send_close_notify();
        here.feed(&written(&mut there)).unwrap();
        let (found, end) = read(&mut here, 3);
        assert_eq!((found.as_slice(), end), (&b"last"[..], Ok(Some(0))));
    }

    #[test]
    fn what_has_no_place_in_a_session_ends_it() {
        let alert = hears(ContentType::Alert, &[2, 48]).unwrap_err();
        assert_eq!((alert.code, alert.words.as_str()), ("alert", "UnknownCA"));
        for (kind, contents) in [
            (ContentType::Alert, &[2u8][..]),
            (ContentType::Alert, &[1, 0, 0]),
            (ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, 2]),
            (ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1]),
            (ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, 0, 0]),
            (ContentType::Handshake, &[4, 0, 0, 0]),
            (ContentType::Heartbeat, &[1]),
        ] {
            assert_eq!(hears(kind, contents).unwrap_err().code, "foreign", "{kind:?} {contents:?}");
        }
        assert_eq!(hears(ContentType::ApplicationData, &[]), Ok(None));
    }

    #[test]
    fn headers_that_cannot_be_are_faults_at_once() {
        for (header, code) in [([22, 3, 3, 0, 5], "foreign"), ([23, 3, 3, 0x41, 1], "foreign")] {
            let (mut here, _) = ends();
            here.feed(&header).unwrap();
            assert!(here.pending());
            for _ in 0..2 {
                assert_eq!(read(&mut here, 10).1.unwrap_err().code, code);
            }
        }
        assert_eq!(Records::whole(&[23, 3, 3, 0x41, 0]), Ok(None)); // the longest
    }

    #[test]
    fn a_record_that_was_changed_or_comes_again_is_not_taken() {
        let (mut here, mut there) = ends();
        let first = sealed(&mut there, b"first");
        here.feed(&first).unwrap();
        assert_eq!(read(&mut here, 10).0, b"first");
        here.feed(&first).unwrap();
        assert!(read(&mut here, 10).1.is_err());
        let (mut here, mut there) = ends();
        let mut changed = sealed(&mut there, &bytes(1000));
        let second = sealed(&mut there, b"second");
        changed[700] ^= 1;
        here.feed(&changed).unwrap();
        here.feed(&second).unwrap();
        let (found, end) = read(&mut here, 10);
        assert!(found.is_empty() && end.is_err());
        assert!(here.seal(1, &mut |_, _| {}).is_err());
    }
}
