//! Clients of HTTPS that are idle, slow or stuck, on a paused clock.

use hyper::client::conn::http2;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::sleep;

use super::*;
use crate::connections::Speech;
use crate::connections::alone::Alone;
use crate::tally::Counts;

/// `. NS`, which a server without zones refuses.
const QUESTION: &[u8] = &[0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
const GET: &str = "GET /dns-query?dns=AAcAAAABAAAAAAAAAAACAAE HTTP/1.1\r\nhost: x\r\n\r\n";

/// Serves one end of a pipe while the client does its part with the other; gives how long the connection lasted,
/// and what was counted.
async fn served<F: Future>(capacity: usize, client: impl FnOnce(DuplexStream) -> F) -> (Duration, Counts) {
    let alone = Alone::new(Speech::PlainHttp);
    let serve = async |ours, peer| converse(ours, peer, false, &alone.shared, Arc::default()).await;
    alone.served(capacity, serve, client).await
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_closed_whatever_it_would_have_spoken() {
    // Nothing; the beginning of HTTP/2; of HTTP/1.1.
    for begun in [&b""[..], b"PRI * HTTP", b"GET /dns-query?d"] {
        let (lasted, counts) = served(1_024, |mut stream| async move {
            stream.write_all(begun).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        assert!(lasted.as_millis() <= u128::from(IDLE_MS_MAX + CLOSE_MS_MAX), "{begun:?}: {lasted:?}");
        assert_eq!(counts.queries, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_is_closed_and_one_that_asks_may_stay() {
    let (lasted, counts) = served(4_096, |mut stream| async move {
        for _ in 0..3 {
            stream.write_all(GET.as_bytes()).await.unwrap();
            let mut answer = [0; 4_096];
            let length = stream.read(&mut answer).await.unwrap();
            assert!(answer[..length].starts_with(b"HTTP/1.1 200"), "{}", answer[..length].escape_ascii());
            sleep(Duration::from_millis(IDLE_MS_MAX - 1_000)).await;
        }
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let expected = 2 * (IDLE_MS_MAX - 1_000) + IDLE_MS_MAX;
    assert_eq!((lasted.as_millis(), counts.queries), (expected.into(), 3));
}

#[tokio::test(start_paused = true)]
async fn a_client_of_http2_is_closed_when_it_is_idle() {
    let (lasted, counts) = served(65_536, |stream| async move {
        let (mut asker, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let running = tokio::spawn(connection);
        for _ in 0..2 {
            let request = Request::post("http://x/dns-query").header(CONTENT_TYPE, request::MEDIA_TYPE);
            let request = request.body(Full::new(Bytes::from_static(QUESTION))).unwrap();
            let answer = asker.send_request(request).await.unwrap();
            assert_eq!(answer.status(), 200);
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!((&body[..2], body[3] & 0xf), (&QUESTION[..2], 5));
            sleep(Duration::from_millis(IDLE_MS_MAX - 1_000)).await;
        }
        running.await.unwrap().unwrap();
    })
    .await;
    let expected = IDLE_MS_MAX - 1_000 + IDLE_MS_MAX;
    assert_eq!((lasted.as_millis(), counts.queries), (expected.into(), 2));
    assert_eq!(counts.connections_timed_out, 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_has_its_time() {
    let (_, counts) = served(4_096, |mut stream| async move {
        let head = "POST /dns-query HTTP/1.1\r\nhost: x\r\ncontent-type: application/dns-message\r\ncontent-length: 17\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let begun = Instant::now();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let trickle = async {
            for byte in QUESTION {
                let _ = writer.write_all(&[*byte]).await;
                sleep(Duration::from_secs(1)).await;
            }
        };
        let mut answer = [0; 12];
        tokio::select! {
            read = reader.read_exact(&mut answer) => assert_eq!(read.unwrap(), 12),
            () = trickle => panic!("waited for to the end"),
        }
        assert_eq!(&answer, b"HTTP/1.1 408");
        assert_eq!(begun.elapsed().as_millis(), BODY_MS_MAX.into());
    })
    .await;
    assert_eq!((counts.queries, counts.requests_refused), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_answers_is_cut_off() {
    let (lasted, counts) = served(64, |mut stream| async move {
        let _ = stream.write_all(GET.repeat(1_000).as_bytes()).await;
        std::future::pending::<()>().await;
    })
    .await;
    assert!(lasted.as_millis() <= u128::from(IDLE_MS_MAX + CLOSE_MS_MAX), "{lasted:?}");
    assert!(counts.queries < 1_000 && counts.connections_timed_out == 1, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_says_so_to_idle_clients() {
    let alone = Alone::new(Speech::PlainHttp);
    let (ours, theirs) = tokio::io::duplex(65_536);
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    let shared = Arc::clone(&alone.shared);
    let serving = tokio::spawn(async move { converse(ours, peer, false, &shared, Arc::default()).await });
    let (mut asker, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(theirs)).await.unwrap();
    let running = tokio::spawn(connection);
    let request = Request::get("http://x/dns-query?dns=AAcAAAABAAAAAAAAAAACAAE");
    let answer = asker.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200);
    let begun = Instant::now();
    alone.stop.send_replace(true);
    serving.await.unwrap();
    running.await.unwrap().unwrap();
    assert!(begun.elapsed().as_millis() < CLOSE_MS_MAX.into());
}

/// On real sockets: what is left unread when one is closed takes the answer away.
#[tokio::test]
async fn an_address_that_is_too_long_is_told_so() {
    let alone = Alone::new(Speech::PlainHttp);
    for more in [usize::from(HEAD_BYTES_MAX), DISCARDED_BYTES_MAX / 2] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (ours, peer) = listener.accept().await.unwrap();
        let shared = Arc::clone(&alone.shared);
        let serving = tokio::spawn(async move { converse(ours, peer, false, &shared, Arc::default()).await });
        let head = format!("GET /dns-query?dns={} HTTP/1.1\r\nhost: x\r\n\r\n", "A".repeat(more));
        client.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        let answer = answer.escape_ascii().to_string();
        assert!(answer.starts_with("HTTP/1.1 431") || answer.starts_with("HTTP/1.1 414"), "{more}: {answer}");
        drop(client);
        serving.await.unwrap();
    }
}
