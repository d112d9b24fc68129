//! The admin port: whether the process lives, whether it is ready, and what it counts. It asks for no credential and shows no data of users.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};

use super::{
    body::{Request, Response, ResponseBody},
    server::{Handler, told},
};
use crate::metrics::{Metrics, Operation};

/// What the text of [`Metrics::render`] is, in the words of OpenMetrics 1.0.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub struct Admin {
    metrics: Arc<Metrics>,
    ready: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl Admin {
    /// `ready` says whether the process should get requests, or why not.
    pub fn new(metrics: Arc<Metrics>, ready: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Admin {
        Admin { metrics, ready: Box::new(ready) }
    }

    fn answer(&self, method: &Method, path: &str) -> Response {
        if !matches!(path, "/healthz" | "/readyz" | "/metrics") {
            return text(StatusCode::NOT_FOUND, "there is /healthz, /readyz and /metrics\n");
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "this is read only\n");
            refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match path {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match (self.ready)() {
                Ok(()) => text(StatusCode::OK, "ready\n"),
                Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            },
            _ => {
                let mut response = text(StatusCode::OK, self.metrics.render());
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(METRICS_TYPE));
                response
            }
        }
    }
}

impl Handler for Admin {
    fn handle(&self, request: Request) -> impl Future<Output = Response> + Send {
        std::future::ready(told(self.answer(request.method(), request.uri().path()), Operation::Other))
    }
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response {
    let mut response = Response::new(ResponseBody::Whole(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn ask(admin: &Admin, method: Method, path: &str) -> (u16, String) {
        let response = admin.answer(&method, path);
        let status = response.status().as_u16();
        let ResponseBody::Whole(body) = response.into_body() else { panic!("an admin answer is whole") };
        (status, String::from_utf8(body.to_vec()).expect("an admin answer is text"))
    }

    #[test]
    fn readiness_follows_the_process_and_health_does_not() {
        let ready = Arc::new(AtomicBool::new(false));
        let readiness = Arc::clone(&ready);
        let is_ready = move || if readiness.load(Ordering::Acquire) { Ok(()) } else { Err("starting".to_owned()) };
        let admin = Admin::new(Arc::default(), is_ready);
        assert_eq!(ask(&admin, Method::GET, "/readyz"), (503, "starting\n".to_owned()));
        assert_eq!(ask(&admin, Method::GET, "/healthz"), (200, "ok\n".to_owned()));
        ready.store(true, Ordering::Release);
        assert_eq!(ask(&admin, Method::GET, "/readyz"), (200, "ready\n".to_owned()));
    }

    #[test]
    fn what_was_counted_is_shown() {
        let metrics = Arc::new(Metrics::default());
        metrics.tier("home").holds(3, 500);
        let admin = Admin::new(metrics, || Ok(()));
        let (status, shown) = ask(&admin, Method::GET, "/metrics");
        assert_eq!(status, 200);
        assert!(shown.contains("kvasar_cache_held_bytes{tier=\"home\"} 500\n"), "{shown}");
    }

    #[test]
    fn other_paths_and_methods_are_refused() {
        let admin = Admin::new(Arc::default(), || Ok(()));
        assert_eq!(ask(&admin, Method::GET, "/").0, 404);
        assert_eq!(ask(&admin, Method::POST, "/metrics").0, 405);
    }
}
