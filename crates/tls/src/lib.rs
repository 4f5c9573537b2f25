//! TLS 1.3 for the connections of the replication: certificates from PEM files, and one end of a connection.
//!
//! Both ends show a certificate of a CA that the other trusts; no version before 1.3 is spoken, no session is taken up
//! again, nothing is sent early. The protocol is `rustls`, its cryptography `ring`; here is how they are set up, and the
//! buffers around them. No frames, no time-outs, no waiting: sockets are non-blocking, and whoever has one waits for it.

mod end;
mod fault;
mod identity;
mod records;

pub use end::{End, HANDSHAKE_LIMIT};
pub use fault::{Fault, LoadFault};
pub use identity::{Identity, host_name};

/// What is spoken inside, so that a certificate for something else on this host is of no use here.
pub const ALPN: &[u8] = b"sustain/1";
