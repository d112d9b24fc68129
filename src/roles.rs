//! The wiring: which parts a process consists of, and how they are joined.
//!
//! A read walks `tiers` downwards to the origin, a write sinks the same way. Every role is made here, from settings and components; `kvasar serve`
//! and `kvasar dev` differ only in the configuration that they bring.

mod accounts;
pub mod stores;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::net::TcpListener;

pub use self::accounts::Credentials;
use self::accounts::ensure_account;

use crate::{
    api::{
        admin::Admin,
        auth::Auth,
        binding::Binding,
        budget::Budget,
        connection::Deadlines,
        rest::Rest,
        server::{self, ServerContext, ServerLimits},
        threads::Threads,
    },
    cache::{
        fleet::{Dial, Fleet, FleetSettings},
        remote::{Remote, RemoteSettings},
        tier::{Tier, TierSettings},
    },
    clock::{self, Clock},
    config::{self, Config, RestOn, Role, Upstream},
    error::{Error, Kind, Result},
    kv::{AccountId, Backend, Control, List, NamespaceId, Source, Writer, reserved},
    limits,
    metrics::{Door, FeedCounts, Metrics, OriginMetrics},
    origin::{
        Origin, OriginSettings,
        host::{Host, Open},
    },
    purge::feed::FeedSettings,
    store::{
        Store,
        cassandra::{CassandraSettings, CassandraStore},
        disk::DiskStore,
    },
};

/// Whether parts of one process ask each other directly, or over sockets as if each were elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    Direct,
    Sockets,
}

/// A process at work.
pub struct Running {
    pub rest: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub origin_listen: Option<SocketAddr>,
    pub tiers: Vec<RunningTier>,
    /// The accounts that the origin of this process made at its first start.
    pub accounts: Vec<Credentials>,
    /// One that is alone on its store.
    pub origin: Option<Arc<Origin>>,
    /// One of several.
    host: Option<Arc<Host>>,
    context: ServerContext,
    /// Those that serve the binding ports. They also carry connections upstream, which others use: so they end last.
    threads: Arc<Threads>,
    ready: Arc<AtomicBool>,
    shutdown_deadline: Duration,
}

pub struct RunningTier {
    pub role: Role,
    pub name: String,
    pub listen: Option<SocketAddr>,
}

/// Starts everything that the configuration names. On an error nothing is left running.
pub async fn start(config: &Config, links: Links, clock: Arc<dyn Clock>) -> Result<Running> {
    let limits = ServerLimits {
        connections: config.limits.connections,
        requests_in_flight: config.limits.requests_in_flight,
        deadlines: Deadlines {
            head: config.limits.head_deadline,
            body_idle: config.limits.body_idle_deadline,
            idle: config.limits.idle_deadline,
        },
    };
    let running = Running {
        rest: None,
        admin: None,
        origin_listen: None,
        tiers: Vec::new(),
        accounts: Vec::new(),
        origin: None,
        host: None,
        context: ServerContext::new(Arc::clone(&clock), limits),
        threads: Arc::new(Threads::start()?),
        ready: Arc::default(),
        shutdown_deadline: config.server.shutdown_deadline,
    };
    let parts = Parts {
        buffers: Budget::new(config.limits.buffered),
        metrics: Arc::new(Metrics::default()),
        clock,
        config,
        links,
        running,
        backends: HashMap::new(),
    };
    parts.start().await
}

/// What is being joined.
struct Parts<'a> {
    config: &'a Config,
    links: Links,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    buffers: Arc<Budget>,
    running: Running,
    /// Tiers of this process by name, for those that ask them and for REST.
    backends: HashMap<String, (Arc<dyn Backend>, Arc<Auth>)>,
}

impl Parts<'_> {
    async fn start(mut self) -> Result<Running> {
        match self.join().await {
            Ok(()) => {
                self.running.ready.store(true, Ordering::Release);
                Ok(self.running)
            }
            Err(error) => {
                self.running.stop().await;
                Err(error)
            }
        }
    }

    async fn join(&mut self) -> Result<()> {
        if let Some(settings) = &self.config.origin {
            self.origin(settings).await?;
        }
        for settings in &self.config.tiers {
            self.tier(settings).await?;
        }
        if let Some(settings) = &self.config.rest {
            self.rest(settings).await?;
        }
        if let Some(address) = self.config.server.admin {
            self.admin(address).await?;
        }
        Ok(())
    }

    async fn origin(&mut self, settings: &config::Origin) -> Result<()> {
        let origin_settings = OriginSettings {
            id: settings.id,
            lease: settings.lease,
            namespaces_per_account: settings.namespaces_per_account,
            writes_per_key_per_second: settings.writes_per_key_per_second,
            push_bytes_max: usize::try_from(settings.push_size_max).unwrap_or(limits::PUSH_BYTES_MAX),
            ..OriginSettings::default()
        };
        if let Some(cassandra) = &settings.cassandra {
            return self.one_of_several(settings, cassandra, origin_settings).await;
        }
        let folder = settings.data.join("store");
        let store = Arc::new(DiskStore::open(&folder, settings.store_cache)?);
        let origin = Origin::open(store, Arc::clone(&self.clock), origin_settings, self.metrics.origin()).await?;
        self.running.origin = Some(Arc::clone(&origin));
        let feed = origin.feed().clone();
        self.watch_origin(move || feed.counts());
        for name in &self.config.accounts {
            let credentials = ensure_account(&origin, &settings.data, name, &*self.clock).await?;
            self.running.accounts.extend(credentials);
        }
        self.offer_origin(settings, origin).await.map(|_| ())
    }

    /// An origin on the store that it shares with others: it comes when the database can be reached.
    async fn one_of_several(
        &mut self,
        settings: &config::Origin,
        cassandra: &config::Cassandra,
        origin_settings: OriginSettings,
    ) -> Result<()> {
        let address = Arc::new(OnceLock::new());
        let host = Host::new(
            open_one_of_several(
                stores::cassandra(cassandra),
                Arc::clone(&address),
                origin_settings,
                Arc::clone(&self.clock),
                self.metrics.origin(),
            ),
            Arc::clone(&self.clock),
        );
        let listen = self.offer_origin(settings, Arc::clone(&host) as Arc<dyn Backend>).await?;
        let found = settings.advertise.clone().or_else(|| listen.map(|listen| listen.to_string()));
        // Set once, before anything reads it.
        let _ =
            address.set(found.ok_or_else(|| Error::bad_request("one of several origins has to listen: set 'listen'"))?);
        self.running.context.tasks.spawn(Arc::clone(&host).run());
        let watched = Arc::clone(&host);
        self.watch_origin(move || watched.feed_counts());
        let accounts = accounts::ensure_all(
            Arc::clone(&host),
            self.config.accounts.clone(),
            settings.data.clone(),
            Arc::clone(&self.clock),
        );
        let shutdown = self.running.context.shutdown.clone();
        self.running.context.tasks.spawn(shutdown.run_until_cancelled_owned(accounts));
        self.running.host = Some(host);
        Ok(())
    }

    async fn offer_origin(
        &mut self,
        settings: &config::Origin,
        backend: Arc<dyn Backend>,
    ) -> Result<Option<SocketAddr>> {
        // An origin's own reads of its records are the latest whatever their age may be.
        let auth = Arc::new(self.auth(&backend, Duration::ZERO).beside_origin());
        if let Some(address) = settings.listen {
            self.running.origin_listen = Some(self.binding("origin", address, &backend, &auth).await?);
        }
        self.backends.insert(ORIGIN.to_owned(), (backend, auth));
        Ok(self.running.origin_listen)
    }

    async fn tier(&mut self, settings: &config::Tier) -> Result<()> {
        let (upstream, upstream_name) = self.upstream(settings)?;
        let tier_settings = TierSettings {
            name: settings.name.clone(),
            cache_bytes: settings.cache,
            cache_share_max: settings.cache_share_max,
            stale_if_unreachable: settings.stale_if_unreachable,
            // What travels takes its trips, twice as many where the connection has to be made first.
            upstream_deadline: settings.upstream_deadline + settings.delay * 4,
            stale_after: STALE_AFTER + settings.delay * 4,
            refills: settings.refills,
            feed_interval: settings.feed_interval,
            feed: FeedSettings::default(),
        };
        let tier = Tier::new(upstream, upstream_name, Arc::clone(&self.clock), tier_settings);
        self.watch_cache(&tier);
        self.running.context.tasks.spawn(tier.clone().follow(self.running.context.shutdown.clone()));
        let backend: Arc<dyn Backend> = Arc::new(tier);
        let auth = Arc::new(self.auth(&backend, settings.control_max_age));
        let listen = match settings.listen {
            Some(address) => Some(self.binding(&settings.name, address, &backend, &auth).await?),
            None => None,
        };
        self.running.tiers.push(RunningTier { role: settings.role, name: settings.name.clone(), listen });
        self.backends.insert(settings.name.clone(), (backend, auth));
        Ok(())
    }

    /// What a tier asks: a part of this process, a server elsewhere, or several origins.
    fn upstream(&self, settings: &config::Tier) -> Result<(Arc<dyn Backend>, String)> {
        let (name, address) = match &settings.upstream {
            Upstream::Origins(addresses) => return self.fleet(settings, addresses),
            Upstream::Remote(address) => (address.clone(), Some(address.clone())),
            Upstream::Origin => (ORIGIN.to_owned(), self.running.origin_listen.map(|listen| listen.to_string())),
            Upstream::Tier(name) => {
                let tier = self.running.tiers.iter().find(|tier| tier.name == *name);
                (name.clone(), tier.and_then(|tier| tier.listen).map(|listen| listen.to_string()))
            }
        };
        let remote = matches!(settings.upstream, Upstream::Remote(_));
        if !remote && self.links == Links::Direct && settings.delay.is_zero() {
            let (backend, _) = self.backends.get(&name).ok_or_else(|| unknown_upstream(&settings.name, &name))?;
            return Ok((Arc::clone(backend), name));
        }
        let address = address.ok_or_else(|| {
            Error::bad_request(format!("tier {} asks {name} over a socket, but {name} does not listen", settings.name))
        })?;
        Ok((Arc::new(self.remote(settings, &address)?), address))
    }

    fn remote(&self, settings: &config::Tier, address: &str) -> Result<Remote> {
        Remote::new(
            self.remote_settings(settings, address)?,
            Arc::clone(&self.clock),
            self.metrics.tier(&settings.name),
        )
    }

    fn remote_settings(&self, settings: &config::Tier, address: &str) -> Result<RemoteSettings> {
        let secret = self.config.cluster_secret.as_ref().ok_or_else(|| {
            Error::bad_request(format!("tier {} asks {address}, for which [cluster] needs a secret", settings.name))
        })?;
        Ok(RemoteSettings {
            address: address.to_owned(),
            secret: secret.reveal().to_owned(),
            deadline: settings.upstream_deadline,
            write_deadline: settings.write_deadline.max(settings.upstream_deadline),
            concurrency: settings.upstream_concurrency,
            delay: settings.delay,
        })
    }

    /// Several origins, over a connection each, and those that they list.
    fn fleet(&self, settings: &config::Tier, addresses: &[String]) -> Result<(Arc<dyn Backend>, String)> {
        let of_first = self.remote_settings(settings, &addresses[0])?;
        let (clock, metrics) = (Arc::clone(&self.clock), self.metrics.tier(&settings.name));
        let remote = move |address: &str| {
            let settings = RemoteSettings { address: address.to_owned(), ..of_first.clone() };
            Remote::new(settings, Arc::clone(&clock), Arc::clone(&metrics))
        };
        remote(&addresses[0])?;
        let dial: Dial = Arc::new(move |address| {
            Arc::new(
                remote(address).expect("what differs from the first one is the address alone, which may be any text"),
            )
        });
        let fleet_settings = FleetSettings {
            name: settings.name.clone(),
            deadline: settings.upstream_deadline + settings.delay * 4,
            write_deadline: settings.write_deadline.max(settings.upstream_deadline) + settings.delay * 4,
            feed_interval: settings.feed_interval,
            feed: FeedSettings::default(),
        };
        let metrics = self.metrics.fleet(&settings.name);
        let fleet = Fleet::new(dial, addresses.to_vec(), Arc::clone(&self.clock), fleet_settings, metrics);
        self.running.context.tasks.spawn(fleet.clone().run(self.running.context.shutdown.clone()));
        let watched = fleet.clone();
        self.each_second(move || watched.measure());
        Ok((Arc::new(fleet), settings.upstream.to_string()))
    }

    async fn rest(&mut self, settings: &config::Rest) -> Result<()> {
        let on = match &settings.on {
            RestOn::Origin => ORIGIN,
            RestOn::Tier(name) => name,
        };
        let (backend, auth) = self.backends.get(on).ok_or_else(|| unknown_upstream("rest", on))?;
        let rest = Rest::new(Arc::clone(backend), Arc::clone(auth), Arc::clone(&self.clock), Arc::clone(&self.buffers));
        let (listener, address) = listen("REST", settings.listen).await?;
        server::spawn(listener, rest, "rest", &self.running.context, self.metrics.door(Door::Rest, "rest"));
        self.running.rest = Some(address);
        Ok(())
    }

    async fn admin(&mut self, address: SocketAddr) -> Result<()> {
        let (listener, address) = listen("health and metrics", address).await?;
        let (ready, host) = (Arc::clone(&self.running.ready), self.running.host.clone());
        let readiness = move || match &host {
            _ if !ready.load(Ordering::Acquire) => Err("starting or stopping".to_owned()),
            Some(host) => host.origin().map(|_| ()).map_err(|error| error.message),
            None => Ok(()),
        };
        let admin = Admin::new(Arc::clone(&self.metrics), readiness);
        // Whoever looks after the process must get in when clients have taken every place.
        let context = self.running.context.with_own_places();
        server::spawn(listener, admin, "admin", &context, self.metrics.door(Door::Admin, "admin"));
        self.running.admin = Some(address);
        Ok(())
    }

    async fn binding(
        &self,
        name: &str,
        address: SocketAddr,
        backend: &Arc<dyn Backend>,
        auth: &Arc<Auth>,
    ) -> Result<SocketAddr> {
        let (listener, address) = listen(name, address).await?;
        let binding = Binding::new(
            Arc::clone(backend),
            Arc::clone(auth),
            Arc::clone(&self.clock),
            Arc::clone(&self.buffers),
            self.metrics.tier(name),
        );
        // Apart from REST, whose large requests would keep reads waiting.
        let context = self.running.context.on(&self.running.threads);
        server::spawn(listener, binding, name, &context, self.metrics.door(Door::Binding, name));
        Ok(address)
    }

    fn auth(&self, backend: &Arc<dyn Backend>, max_age: Duration) -> Auth {
        let source: Arc<dyn Source> = Arc::clone(backend) as Arc<dyn Source>;
        let secret = self.config.cluster_secret.as_ref().map(config::Secret::reveal);
        Auth::new(source, Arc::clone(&self.clock), secret, max_age)
    }

    /// Keeps the figures of the origin's feed up to date.
    fn watch_origin(&self, counts: impl Fn() -> FeedCounts + Send + 'static) {
        let metrics = self.metrics.feed(ORIGIN);
        self.each_second(move || metrics.sends(counts()));
    }

    /// Keeps the gauges of what a tier holds up to date.
    fn watch_cache(&self, tier: &Tier) {
        let (tier, metrics, feed_metrics) =
            (tier.clone(), self.metrics.tier(tier.name()), self.metrics.feed(tier.name()));
        self.each_second(move || {
            metrics.holds(tier.memory().entries() as u64, tier.memory().bytes());
            metrics.follows(tier.feed_age());
            feed_metrics.sends(tier.feed().counts());
        });
    }

    fn each_second(&self, look: impl Fn() + Send + 'static) {
        let (clock, shutdown) = (Arc::clone(&self.clock), self.running.context.shutdown.clone());
        self.running.context.tasks.spawn(async move {
            loop {
                look();
                tokio::select! {
                    () = clock.sleep(Duration::from_secs(1)) => {}
                    () = shutdown.cancelled() => return,
                }
            }
        });
    }
}

/// How long a read that could be answered stale waits for an upstream next door.
const STALE_AFTER: Duration = Duration::from_secs(1);

/// The name under which the origin stands among the parts; no tier may be called so.
const ORIGIN: &str = "origin";

impl Running {
    /// Stops accepting, finishes what is under way within the deadline, and closes the store.
    pub async fn stop(self) {
        self.ready.store(false, Ordering::Release);
        // While others can still hear of it.
        if let Some(host) = &self.host
            && clock::within(&*self.context.clock, self.shutdown_deadline, host.leave()).await.is_err()
        {
            tracing::warn!("the origin could not leave the others in time: they find out in a lease");
        }
        self.context.stop();
        // Those who follow it would hold their connections to the deadline.
        if let Some(origin) = &self.origin {
            origin.feed().close();
        }
        self.context.tasks.close();
        let finished = clock::within(&*self.context.clock, self.shutdown_deadline, self.context.tasks.wait()).await;
        if finished.is_err() {
            tracing::warn!(deadline = ?self.shutdown_deadline, "requests were still under way at the deadline; they are broken off");
        }
        self.threads.end();
        if let Some(origin) = self.origin {
            origin.close().await;
        }
    }
}

async fn listen(what: &str, address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let failed = |e| Error::bad_request(format!("listening on {address} for {what}")).with_source(e);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

fn unknown_upstream(who: &str, name: &str) -> Error {
    Error::bad_request(format!("{who} names {name}, which is not a part of this process"))
}

/// Opens the database, once, and an origin on it, each time that one is needed.
fn open_one_of_several(
    store_settings: CassandraSettings,
    address: Arc<OnceLock<String>>,
    origin_settings: OriginSettings,
    clock: Arc<dyn Clock>,
    metrics: OriginMetrics,
) -> Open {
    let connected = Arc::new(tokio::sync::Mutex::new(None::<Arc<dyn Store>>));
    Box::new(move || {
        let (connected, clock, metrics) = (Arc::clone(&connected), Arc::clone(&clock), metrics.clone());
        let (store_settings, mut origin_settings) = (store_settings.clone(), origin_settings.clone());
        origin_settings.address = address.get().cloned().unwrap_or_default();
        Box::pin(async move {
            let mut connected = connected.lock().await;
            let store = match &*connected {
                Some(store) => Arc::clone(store),
                None => {
                    let store: Arc<dyn Store> =
                        Arc::new(CassandraStore::connect(store_settings, Arc::clone(&clock)).await?);
                    *connected = Some(Arc::clone(&store));
                    store
                }
            };
            Origin::open(store, clock, origin_settings, metrics).await
        })
    })
}

/// A namespace of an account by its title, made if it is not there.
pub async fn ensure_namespace(origin: &Arc<Origin>, account: AccountId, title: &str) -> Result<crate::kv::Namespace> {
    let create = Control::CreateNamespace { title: title.to_owned(), jurisdiction: None, mode: None };
    match origin.control(account, create).await {
        Ok((crate::kv::Controlled::Namespace(namespace), _)) => Ok(namespace),
        Ok(_) => Err(Error::internal("making a namespace was answered with something else")),
        Err(error) if error.kind == Kind::NamespaceExists => find_namespace(origin, account, title).await,
        Err(error) => Err(error),
    }
}

async fn find_namespace(origin: &Arc<Origin>, account: AccountId, title: &str) -> Result<crate::kv::Namespace> {
    let mut cursor = None;
    loop {
        let list = List { prefix: reserved::namespaces(account), limit: crate::limits::LIST_PAGE_MAX, cursor };
        let page = origin.list(NamespaceId::RESERVED, &list).await?;
        for listed in page.keys {
            let record = listed.metadata.unwrap_or_default();
            let namespace: crate::kv::Namespace = serde_json::from_slice(&record)
                .map_err(|e| Error::internal("reading the record of a namespace").with_source(e))?;
            if namespace.title == title {
                return Ok(namespace);
            }
        }
        cursor = page.cursor;
        if cursor.is_none() {
            return Err(Error::new(Kind::NamespaceUnknown, format!("no namespace is called {title}")));
        }
    }
}
