//! How the processes of a launch find each other.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::super::launch::{LaunchError, Launcher};
use super::frame::{Frame, read};

/// What a connection begins with, so that one that is not ours is noticed.
const MAGIC: &[u8; 8] = b"BASICrun";
/// The answers to a process that names itself.
const WELCOME: u8 = 1;
const OTHER_LAUNCH: u8 = 2;
/// How long a connection has to name itself.
const HELLO: Duration = Duration::from_secs(10);
/// How long one attempt to connect may take, and how long the next one is put off.
const ATTEMPT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
/// The most characters of a launch's name.
const NAME: usize = 1000;

/// Where the processes of a launch meet, and which of them this one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The machine of rank 0.
    pub host: String,
    /// The port on which rank 0 listens.
    pub port: u16,
    /// This process's number.
    pub rank: usize,
    /// The number of processes.
    pub world: usize,
    /// The launch's name, which is the same for all of its processes.
    pub launch: String,
}

impl Place {
    /// From what `torchrun` sets in the environment.
    ///
    /// # Errors
    ///
    /// [`LaunchError::Variable`]
    pub fn of(get: &dyn Fn(&str) -> Option<String>, rank: usize, world: usize) -> Result<Self, LaunchError> {
        let wrong = |variable: &'static str, value: String, wanted: &str| LaunchError::Variable {
            variable,
            value,
            launcher: Launcher::Torchrun.name(),
            wanted: wanted.into(),
        };
        let host = get("MASTER_ADDR").unwrap_or_default();
        if host.trim().is_empty() {
            return Err(wrong("MASTER_ADDR", host, "the name or address of rank 0's machine"));
        }
        let given = get("MASTER_PORT").unwrap_or_default();
        // torchrun itself may already use the port, for PyTorch's store, and says so.
        let taken = get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value.trim() == "True");
        let port = given.trim().parse::<u16>().ok().filter(|port| *port > 0);
        let port = port.and_then(|port| port.checked_add(u16::from(taken)));
        let port = port.ok_or_else(|| wrong("MASTER_PORT", given, "a port, from 1 to 65534"))?;
        let launch = get("TORCHELASTIC_RUN_ID").unwrap_or_default().chars().take(NAME).collect();
        Ok(Self { host: host.trim().into(), port, rank, world, launch })
    }

    fn shown(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// The connections of this process, by rank, and what comes over them.
type Met = (Vec<(usize, TcpStream)>, Receiver<(usize, Frame)>);

/// Connects this process to the others.
pub fn meet(place: &Place, patience: Duration) -> Result<Met, LaunchError> {
    let peers = match place.rank {
        0 => listen(place, patience)?,
        _ => vec![(0, connect(place, patience)?)],
    };
    let (tell, inbox) = channel();
    for (rank, peer) in &peers {
        let started = peer.set_read_timeout(None).and_then(|()| peer.set_nodelay(true)).and_then(|()| peer.try_clone());
        let started = started.and_then(|peer| receive(*rank, peer, place.world, tell.clone()));
        started
            .map_err(|error| LaunchError::Meeting(format!("a connection to rank {rank} cannot be used: {error}")))?;
    }
    Ok((peers, inbox))
}

/// Starts the thread that reads what a rank sends.
fn receive(rank: usize, peer: TcpStream, world: usize, tell: Sender<(usize, Frame)>) -> io::Result<()> {
    let reader = move || {
        let mut peer = io::BufReader::new(peer);
        loop {
            // A frame that cannot be read leaves nothing behind it that could be.
            let frame = read(&mut peer, world).unwrap_or(Frame::Gone);
            let ends = frame == Frame::Gone;
            if tell.send((rank, frame)).is_err() || ends {
                return;
            }
        }
    };
    Builder::new().name(format!("from rank {rank}")).spawn(reader).map(|_| ())
}

/// What a process says of itself.
fn hello(place: &Place) -> Vec<u8> {
    let mut hello = MAGIC.to_vec();
    [place.world, place.rank, place.launch.len()].iter().for_each(|n| hello.extend((*n as u64).to_le_bytes()));
    hello.extend(place.launch.as_bytes());
    hello
}

/// Rank 0: waits for all others.
fn listen(place: &Place, patience: Duration) -> Result<Vec<(usize, TcpStream)>, LaunchError> {
    let start = Instant::now();
    let any = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
    let any = any.map(|address| SocketAddr::new(address, place.port));
    let listener = TcpListener::bind(&any[..]).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    let listener = listener.map_err(|error| {
        LaunchError::Meeting(format!(
            "rank 0 cannot listen on port {}: {error}; another launch may use it: give torchrun another --master-port",
            place.port
        ))
    })?;
    let (tell, named) = channel();
    let mut peers: Vec<Option<TcpStream>> = (1..place.world).map(|_| None).collect();
    while peers.iter().any(Option::is_none) {
        if let Ok((stream, _)) = listener.accept() {
            let (tell, place) = (tell.clone(), place.clone());
            // A connection that says nothing keeps nobody waiting.
            let _ = Builder::new().name("hello".into()).spawn(move || {
                if let Some(rank) = greet(&stream, &place) {
                    let _ = tell.send((rank, stream));
                }
            });
        }
        match named.recv_timeout(Duration::from_millis(10)) {
            Ok((rank, stream)) if peers[rank - 1].is_none() => peers[rank - 1] = Some(stream),
            Ok((rank, _)) => {
                return Err(LaunchError::Meeting(format!(
                    "two processes say that they are rank {rank} of the launch at {}: give each launch its own \
                     --master-port",
                    place.shown()
                )));
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        if start.elapsed() >= patience {
            let missing = peers.iter().enumerate().filter(|(_, peer)| peer.is_none());
            let missing: Vec<usize> = missing.map(|(i, _)| i + 1).collect();
            return Err(LaunchError::Meeting(format!(
                "{} of {} did not connect to {} within {} s: all need the same --master-addr and --master-port, and a \
                 network that lets them through",
                super::super::ranks_named(&missing),
                place.world,
                place.shown(),
                patience.as_secs()
            )));
        }
    }
    let peers: Vec<(usize, TcpStream)> = (1..).zip(peers.into_iter().flatten()).collect();
    // A process that has ended meanwhile is noticed by the thread that reads its connection.
    peers.iter().for_each(|(_, peer)| {
        let _ = (&*peer).write_all(&[WELCOME]);
    });
    Ok(peers)
}

/// The rank of a connection; `None` for one that does not belong here.
fn greet(stream: &TcpStream, place: &Place) -> Option<usize> {
    stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(HELLO))).ok()?;
    let mut from = stream;
    let mut head = [0; 32];
    from.read_exact(&mut head).ok()?;
    let (magic, numbers) = head.split_at(8);
    let number = |i: usize| numbers.as_chunks::<8>().0.get(i).map(|bytes| u64::from_le_bytes(*bytes));
    let (world, rank, length) = (number(0)?, number(1)?, usize::try_from(number(2)?).ok()?);
    if magic != MAGIC || length > 4 * NAME {
        return None;
    }
    let mut launch = vec![0; length];
    from.read_exact(&mut launch).ok()?;
    let rank = usize::try_from(rank).ok().filter(|rank| (1..place.world).contains(rank));
    if world != place.world as u64 || rank.is_none() || launch != place.launch.as_bytes() {
        let _ = from.write_all(&[OTHER_LAUNCH]);
        return None;
    }
    rank
}

/// Another rank: connects to rank 0, which may start later.
fn connect(place: &Place, patience: Duration) -> Result<TcpStream, LaunchError> {
    let start = Instant::now();
    let failed = |why: String| {
        let (rank, at) = (place.rank, place.shown());
        LaunchError::Meeting(format!("rank {rank} could not meet rank 0 at {at}: {why}"))
    };
    loop {
        let error = match attempt(place) {
            Ok(stream) => return welcome(place, stream, patience.saturating_sub(start.elapsed())).map_err(failed),
            Err(error) => error,
        };
        if start.elapsed() >= patience {
            return Err(failed(format!("{error}, for {} s", patience.as_secs())));
        }
        std::thread::sleep(PAUSE);
    }
}

fn attempt(place: &Place) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for address in (place.host.as_str(), place.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, ATTEMPT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Names this process and waits for the welcome, which comes when all are there.
fn welcome(place: &Place, stream: TcpStream, patience: Duration) -> Result<TcpStream, String> {
    let mut answer = [0];
    let patience = patience.max(PAUSE);
    let read = stream.set_read_timeout(Some(patience)).and_then(|()| (&stream).write_all(&hello(place)));
    match read.and_then(|()| (&stream).read_exact(&mut answer)) {
        Ok(()) if answer == [WELCOME] => Ok(stream),
        Ok(()) if answer == [OTHER_LAUNCH] => {
            Err("it belongs to another launch: give each its own --master-port".into())
        }
        Ok(()) => Err("something else than BASIC answers there: give torchrun another --master-port".into()),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            Err(format!("not all processes had connected after {} s", patience.as_secs()))
        }
        Err(_) => Err("it ended the connection: its own message says why".into()),
    }
}
