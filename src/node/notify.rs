//! Telling the service manager that the socket answers (`sd_notify(3)`): one datagram.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Whether a service manager has started this process and waits for its word.
pub fn is_managed() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Says `READY=1` where `$NOTIFY_SOCKET` points; nowhere without it.
pub fn ready() {
    let Some(target) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = tell(target.as_bytes(), b"READY=1") {
        tracing::warn!(%error, "$NOTIFY_SOCKET doesn't take READY=1");
    }
}

/// A leading `@` stands for the zero byte of an abstract address.
fn tell(target: &[u8], message: &[u8]) -> io::Result<()> {
    let address = match target {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    UnixDatagram::unbound()?.send_to_addr(message, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_abstract_names() {
        let path = std::env::temp_dir().join(format!("viproute-notify-{}", std::process::id()));
        let name = format!("viproute-notify-{}", std::process::id());
        let at_path = UnixDatagram::bind(&path).unwrap();
        let at_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, target) in [(at_path, path.to_str().unwrap()), (at_name, &format!("@{name}"))] {
            tell(target.as_bytes(), b"READY=1").unwrap();
            let mut buffer = [0; 16];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        }
        std::fs::remove_file(path).unwrap();
    }
}
