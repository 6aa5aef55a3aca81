//! A client of one API server.

use std::time::Duration;

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

/// How long a TCP connection may take to open: shorter than kube's 30 s, since there may be another server.
const CONNECT: Duration = Duration::from_secs(5);
/// An idle connection is probed this often; a watch may be silent for minutes while its server is long gone.
const PROBE: Duration = Duration::from_secs(10);
/// Unanswered probes, or data not acknowledged for as long, end the connection.
const PROBES: u32 = 3;

/// Makes a client; nothing is sent yet.
///
/// # Errors
/// Certificates, keys or tokens of the configuration cannot be used.
pub(crate) fn client(mut config: Config) -> Result<Client, kube::Error> {
    config.connect_timeout = Some(CONNECT);
    if config.proxy_url.is_some() {
        return Client::try_from(config);
    }
    // As kube builds it, with keep-alive probes: a server that vanished is noticed after 40 s, not after 5 minutes.
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(PROBE));
    tcp.set_keepalive_interval(Some(PROBE));
    tcp.set_keepalive_retries(Some(PROBES));
    tcp.set_tcp_user_timeout(Some(PROBE * (PROBES + 1)));
    let tls = config.rustls_https_connector_with_connector(tcp)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(tls);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}
