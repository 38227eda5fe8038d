//! Good clients, bad clients, and the one not disturbing the other.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::*;

/// A directory of its own for each test, removed with it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("viproute-server-{name}-{}", std::process::id())))
    }

    fn socket(&self) -> PathBuf {
        self.0.join("run/viprouted.sock")
    }

    async fn connect(&self) -> BufReader<UnixStream> {
        BufReader::new(UnixStream::connect(self.socket()).await.unwrap())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server that answers every request with `{"n": …}`, counting, except that it never answers a release.
fn serve(place: &Place) -> tokio::task::JoinHandle<()> {
    let server = Server::bind(&place.socket()).unwrap();
    let (sender, mut calls) = mpsc::unbounded_channel::<Call>();
    tokio::spawn(async move {
        let mut n = 0;
        let mut silent = Vec::new();
        while let Some(call) = calls.recv().await {
            n += 1;
            match call.request {
                Request::Release(_) => silent.push(call.reply),
                _ => drop(call.reply.send(line(&Ok(serde_json::json!({ "n": n }))))),
            }
        }
    });
    tokio::spawn(async move { server.run(sender).await })
}

async fn ask(stream: &mut BufReader<UnixStream>, line: &[u8]) -> String {
    stream.write_all(line).await.unwrap();
    let mut reply = String::new();
    timeout(Duration::from_secs(5), stream.read_line(&mut reply)).await.unwrap().unwrap();
    reply
}

#[tokio::test]
async fn several_requests_on_one_connection_and_the_file_is_private() {
    let place = Place::new("several");
    let server = serve(&place);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&place.socket()), 0o600);
    assert_eq!(mode(place.socket().parent().unwrap()), 0o700);
    let mut client = place.connect().await;
    assert_eq!(ask(&mut client, b"{\"leases\": {}}\n").await, "{\"n\":1}\n");
    // Two in one write are answered one after the other.
    assert_eq!(ask(&mut client, b"{\"status\": {}}\n{\"leases\": {}}\n").await, "{\"n\":2}\n");
    assert_eq!(ask(&mut client, b"").await, "{\"n\":3}\n");
    server.abort();
    let _ = server.await;
    assert!(!place.socket().exists());
}

#[tokio::test]
async fn garbage_is_answered_and_cut_off_without_disturbing_others() {
    let place = Place::new("garbage");
    let _server = serve(&place);
    let mut good = place.connect().await;
    let mut waiting = place.connect().await;
    waiting.write_all(b"{\"release\": {\"vip\": \"a/b\"}}\n").await.unwrap();
    let long = vec![b'x'; MAX_REQUEST + 1];
    let half = b"{\"leases\"".to_vec();
    for (bad, expected) in [
        (b"hello\n".to_vec(), "{\"error\":{\"code\":6,\"msg\":\"not a request: "),
        (b"\xff\xfe\n".to_vec(), "{\"error\":{\"code\":6,"),
        (b"\n".to_vec(), "{\"error\":{\"code\":6,"),
        (long, "{\"error\":{\"code\":6,\"msg\":\"a request has at most 65536 bytes"),
    ] {
        let mut client = place.connect().await;
        let reply = ask(&mut client, &bad).await;
        assert!(reply.starts_with(expected), "{reply}");
        assert_eq!(ask(&mut client, b"").await, "", "closed");
    }
    let mut client = place.connect().await;
    client.write_all(&half).await.unwrap();
    drop(client);
    assert_eq!(ask(&mut good, b"{\"status\": {}}\n").await, "{\"n\":2}\n");
}

#[tokio::test]
async fn a_longest_line_is_still_read() {
    let place = Place::new("longest");
    let _server = serve(&place);
    let mut line = b"{\"status\": {}}".to_vec();
    line.resize(MAX_REQUEST, b' ');
    line.push(b'\n');
    assert_eq!(ask(&mut place.connect().await, &line).await, "{\"n\":1}\n");
}

#[tokio::test]
async fn the_257th_connection_is_turned_away() {
    let place = Place::new("many");
    let _server = serve(&place);
    let mut clients = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        clients.push(place.connect().await);
    }
    // All of them are being served once the last one is.
    if let Some(last) = clients.last_mut() {
        ask(last, b"{\"status\": {}}\n").await;
    }
    let reply = ask(&mut place.connect().await, b"").await;
    assert_eq!(reply, "{\"error\":{\"code\":11,\"msg\":\"too many connections\"}}\n");
    clients.clear();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(ask(&mut place.connect().await, b"{\"status\": {}}\n").await, "{\"n\":2}\n");
}

#[tokio::test]
async fn a_dead_socket_is_replaced_a_live_one_and_other_files_are_not() {
    let place = Place::new("stale");
    fs::create_dir_all(place.socket().parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(place.socket()).unwrap());
    assert!(place.socket().exists());
    let server = Server::bind(&place.socket()).unwrap();
    assert!(matches!(Server::bind(&place.socket()), Err(unix::Error::InUse { .. })));
    drop(server);
    fs::File::create(place.socket()).unwrap();
    assert!(matches!(Server::bind(&place.socket()), Err(unix::Error::NoSocket { .. })));
}

#[tokio::test]
async fn half_a_line_is_not_waited_for_for_ever() {
    let place = Place::new("slow");
    let read_timeout = Duration::from_millis(200);
    let mut server = Server::bind(&place.socket()).unwrap();
    server.read_timeout = read_timeout;
    let (sender, _calls) = mpsc::unbounded_channel::<Call>();
    tokio::spawn(async move { server.run(sender).await });
    let mut client = place.connect().await;
    client.write_all(b"{\"status\"").await.unwrap();
    let before = std::time::Instant::now();
    assert_eq!(ask(&mut client, b"").await, "");
    assert!(before.elapsed() >= read_timeout);
}
