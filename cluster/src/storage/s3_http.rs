//! HTTP for the S3 client: connections that are kept, a deadline for each request, and the one
//! header that the client has no option for.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use tokio::time::{Instant, Sleep};

#[cfg(feature = "tls")]
type Connect = hyper_rustls::HttpsConnector<TcpConnector>;
#[cfg(not(feature = "tls"))]
type Connect = TcpConnector;

/// The object that is damaged on its way to the server, to see whether that takes it.
pub(super) const PROBE_DAMAGED: &str = "~damaged";

/// Makes HTTP clients.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) connect_timeout: Duration,
    /// From the beginning of a request to the end of its answer.
    pub(super) timeout: Duration,
}

#[derive(Debug)]
struct Service {
    client: legacy::Client<Connect, HttpRequestBody>,
    timeout: Duration,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let mut tcp = TcpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(self.connect_timeout));
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connect(tcp)?);
        let timeout = self.timeout;
        Ok(HttpClient::new(Service { client, timeout }))
    }
}

#[cfg(not(feature = "tls"))]
fn connect(tcp: TcpConnector) -> object_store::Result<Connect> {
    Ok(tcp)
}

#[cfg(feature = "tls")]
fn connect(mut tcp: TcpConnector) -> object_store::Result<Connect> {
    tcp.enforce_http(false);
    let builder = hyper_rustls::HttpsConnectorBuilder::new().with_native_roots();
    let builder = builder.map_err(|error| object_store::Error::Generic {
        store: "S3",
        source: error.into(),
    })?;
    Ok(builder.https_or_http().enable_http1().wrap_connector(tcp))
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let query = request.uri().query().unwrap_or_default();
        let completes = request.method() == hyper::Method::POST
            && query.split('&').any(|part| part.starts_with("uploadId="));
        if completes {
            // The library has it for whole objects only. Headers that do not begin with x-amz-
            // need not be signed.
            let any = hyper::header::HeaderValue::from_static("*");
            request
                .headers_mut()
                .insert(hyper::header::IF_NONE_MATCH, any);
        }
        if request.method() == hyper::Method::PUT && request.uri().path().ends_with(PROBE_DAMAGED) {
            *request.body_mut() = PROBE_DAMAGED.to_uppercase().into();
        }
        let deadline = Instant::now() + self.timeout;
        let answer = tokio::time::timeout_at(deadline, self.client.request(request)).await;
        let answer = answer.map_err(|_| timed_out())?;
        let answer = answer.map_err(|error| {
            let kind = match error.is_connect() {
                true => HttpErrorKind::Connect,
                false => kind_of(&error),
            };
            HttpError::new(kind, error)
        })?;
        Ok(answer.map(|body| {
            let sleep = Box::pin(tokio::time::sleep_until(deadline));
            HttpResponseBody::new(Timed { body, sleep })
        }))
    }
}

fn timed_out() -> HttpError {
    let error = io::Error::new(io::ErrorKind::TimedOut, "no answer in time (timeout_ms)");
    HttpError::new(HttpErrorKind::Timeout, error)
}

/// What a failure of a connection says about the request.
fn kind_of(error: &(dyn Error + 'static)) -> HttpErrorKind {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && (error.is_closed() || error.is_incomplete_message() || error.is_body_write_aborted())
        {
            return HttpErrorKind::Interrupted;
        }
        if error.is::<io::Error>() {
            return HttpErrorKind::Interrupted;
        }
        cause = error.source();
    }
    HttpErrorKind::Unknown
}

/// An answer's body, which has to come before its request's deadline.
struct Timed {
    body: Incoming,
    sleep: Pin<Box<Sleep>>,
}

impl Body for Timed {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            let fail = |error| HttpError::new(kind_of(&error), error);
            return Poll::Ready(frame.map(|frame| frame.map_err(fail)));
        }
        ready!(self.sleep.as_mut().poll(context));
        Poll::Ready(Some(Err(timed_out())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
