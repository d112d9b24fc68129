//! Requests to a server under measurement, over connections that are kept.

use bytes::Bytes;
use http_body_util::{BodyExt, combinators::BoxBody};
use hyper::{Method, Request, Response, body::Incoming};
use hyper_util::{
    client::legacy::{Client as Pool, connect::HttpConnector},
    rt::TokioExecutor,
};

pub type Body = BoxBody<Bytes, std::io::Error>;

/// Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub struct Client {
    pool: Pool<HttpConnector, Body>,
    /// What goes with each request.
    headers: Vec<(&'static str, String)>,
}

impl Client {
    pub fn new(headers: Vec<(&'static str, String)>) -> Client {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Client { pool: Pool::builder(TokioExecutor::new()).build(connector), headers }
    }

    /// The head of the answer, which has to be a success; its body is the caller's to read.
    pub async fn send(&self, method: Method, url: &str, body: Body) -> Response<Incoming> {
        let mut request = Request::builder().method(&method).uri(url);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.body(body).unwrap_or_else(|e| panic!("{method} {url} is no request: {e}"));
        let answer = self.pool.request(request).await.unwrap_or_else(|e| panic!("{method} {url}: {e:?}"));
        if !answer.status().is_success() {
            let (head, body) = answer.into_parts();
            let text = body.collect().await.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
            panic!("{method} {url}: {} {text:?}", head.status);
        }
        answer
    }

    /// The answer, read whole.
    pub async fn ask(&self, method: Method, url: &str, body: impl Into<Bytes>) -> Bytes {
        let answer = self.send(method, url, whole(body)).await;
        answer.into_body().collect().await.unwrap_or_else(|e| panic!("{url} broke off: {e}")).to_bytes()
    }
}

pub fn whole(body: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(body.into()).map_err(|never| match never {}).boxed()
}
