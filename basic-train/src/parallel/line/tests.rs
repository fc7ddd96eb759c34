//! Processes stand as threads here: each has its own connections.

use std::io::Write;
use std::net::TcpListener;
use std::sync::Barrier;
use std::thread;

use super::*;
use crate::parallel::failed;

const SOON: Duration = Duration::from_secs(20);

/// A port that nobody uses.
fn free() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn place(port: u16, rank: usize, world: usize) -> Place {
    Place { host: "127.0.0.1".into(), port, rank, world, launch: "a".into() }
}

/// What `body` gives for each of `world` connected processes.
fn all<T: Send>(world: usize, body: impl Fn(Line) -> T + Sync) -> Vec<T> {
    let port = free();
    let one = |rank: usize| body(Line::open(&place(port, rank, world), SOON, SOON).unwrap());
    let one = &one;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..world).map(|rank| scope.spawn(move || one(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn every_process_gets_the_values_of_all() {
    for world in [2, 3, 5] {
        let got = all(world, |line| {
            let bytes = line.gather_bytes(&vec![line.rank() as u8; 1000 * line.rank()]).unwrap();
            let mut values = [line.rank() as f64, 0.5];
            line.sum_f64(&mut values).unwrap();
            line.barrier().unwrap();
            (bytes, values)
        });
        let expected: Vec<Vec<u8>> = (0..world).map(|rank| vec![rank as u8; 1000 * rank]).collect();
        let sum = (world * (world - 1) / 2) as f64;
        assert!(got.iter().all(|(bytes, values)| *bytes == expected && *values == [sum, world as f64 / 2.0]));
    }
}

#[test]
fn processes_that_bring_different_numbers_of_values_are_told() {
    let got = all(2, |line| line.sum_f64(&mut vec![0.0; 1 + line.rank()]).unwrap_err());
    let expected = CollectiveError::Mismatch { rank: 1, found: "2 values".into(), expected: "1 values".into() };
    assert_eq!(got, [expected.clone(), expected]);
}

#[test]
fn a_failure_of_one_stops_all_and_is_reported_once() {
    for bad in [0, 2] {
        let got = all(3, |line| {
            let message = match line.rank() == bad {
                true => "no such picture".to_string(),
                false => line.barrier().unwrap_err().to_string(),
            };
            (line.fail(&message), message)
        });
        for (rank, (failure, message)) in got.iter().enumerate() {
            match rank == bad {
                true => assert_eq!(*failure, Failure::Alone),
                false => assert_eq!((failure, message), (&Failure::Heard, &format!("{}no such picture", failed(bad)))),
            }
        }
    }
}

#[test]
fn a_failure_of_all_is_reported_by_the_lowest() {
    let start = Barrier::new(3);
    let got = all(3, |line| {
        start.wait();
        line.fail("no such recipe")
    });
    assert_eq!(got, [Failure::Alike, Failure::Heard, Failure::Heard]);
}

#[test]
fn a_process_that_ends_or_hangs_is_named() {
    for gone in [0, 1] {
        let got = all(3, |line| (line.rank() != gone).then(|| line.barrier().unwrap_err()));
        let expected = CollectiveError::Ended { rank: gone };
        assert!(got.iter().flatten().all(|error| *error == expected), "{got:?}");
    }
    let done = Barrier::new(3);
    let got = all(3, |line| {
        line.set_time_limit(Duration::from_secs(2));
        let error = (line.rank() != 2).then(|| line.barrier().unwrap_err());
        let reporter = error.as_ref().map(|error| line.fail(&error.to_string()));
        done.wait();
        (error, reporter)
    });
    let silent = |error: &Option<CollectiveError>| match error {
        Some(CollectiveError::Silent { ranks, seconds }) => *ranks == [2] && *seconds >= 2,
        _ => false,
    };
    assert!(silent(&got[0].0) && silent(&got[1].0), "{got:?}");
    assert_eq!([got[0].1, got[1].1], [Some(Failure::Alike), Some(Failure::Heard)]);
}

#[test]
fn connections_of_others_keep_nobody_from_meeting() {
    let port = free();
    thread::scope(|scope| {
        let first = scope.spawn(move || Line::open(&place(port, 0, 2), SOON, SOON).map(|line| line.barrier()));
        let connect = || loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => return stream,
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        };
        // One that says nothing, one that says something else, and a process of another launch.
        let _silent = connect();
        connect().write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
        for other in [Place { launch: "b".into(), ..place(port, 1, 2) }, place(port, 2, 3)] {
            let error = Line::open(&other, SOON, SOON).unwrap_err().to_string();
            assert!(error.contains("another launch"), "{error}");
        }
        let second = Line::open(&place(port, 1, 2), SOON, SOON).unwrap();
        second.barrier().unwrap();
        first.join().unwrap().unwrap().unwrap();
    });
}

#[test]
fn processes_that_do_not_come_are_named() {
    let soon = Duration::from_millis(300);
    let port = free();
    let error = Line::open(&place(port, 0, 3), soon, SOON).unwrap_err().to_string();
    assert!(error.contains("ranks 1, 2 of 3") && error.contains(&format!("127.0.0.1:{port}")), "{error}");
    let error = Line::open(&place(port, 1, 3), soon, SOON).unwrap_err().to_string();
    assert!(error.starts_with("rank 1 could not meet rank 0 at"), "{error}");
    let taken = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let error = Line::open(&place(taken.local_addr().unwrap().port(), 0, 2), soon, SOON).unwrap_err().to_string();
    assert!(error.contains("cannot listen on port") && error.contains("--master-port"), "{error}");
}

#[test]
fn the_place_is_read_from_the_environment() {
    let of = |pairs: &[(&str, &str)]| {
        let get = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_string());
        Place::of(&get, 1, 4).map_err(|error| error.to_string())
    };
    let (address, port, store) = (("MASTER_ADDR", "node7"), ("MASTER_PORT", "29500"), "TORCHELASTIC_USE_AGENT_STORE");
    let found = of(&[address, port, ("TORCHELASTIC_RUN_ID", "x")]).unwrap();
    assert_eq!(found, Place { host: "node7".into(), port: 29500, rank: 1, world: 4, launch: "x".into() });
    // torchrun's own store has the port.
    assert_eq!(of(&[address, port, (store, "True")]).unwrap().port, 29501);
    assert_eq!(of(&[address, port, (store, "False")]).unwrap().port, 29500);
    assert!(of(&[port]).unwrap_err().contains("MASTER_ADDR"));
    for bad in ["", "0", "65536", "http", "-1"] {
        assert!(of(&[address, ("MASTER_PORT", bad)]).unwrap_err().contains("MASTER_PORT"));
    }
    assert!(of(&[address, ("MASTER_PORT", "65535"), (store, "True")]).unwrap_err().contains("MASTER_PORT"));
}

#[test]
fn damaged_frames_are_errors() {
    let frames = [
        Frame::Bytes(vec![1, 2, 3]),
        Frame::All(vec![vec![7], Vec::new(), vec![8; 40]]),
        Frame::Failed { rank: 2, message: "a cause".into() },
        Frame::Silent { ranks: vec![0, 2], seconds: 7 },
        Frame::Ended(1),
    ];
    for frame in frames {
        let mut whole = Vec::new();
        write(&mut whole, &frame).unwrap();
        assert_eq!(frame::read(&whole[..], 3).unwrap(), frame);
        for end in 0..whole.len() {
            assert!(frame::read(&whole[..end], 3).is_err(), "{frame:?} of {end} bytes");
        }
        // Every damaged byte gives a frame or an error.
        for i in 0..whole.len() {
            for bit in 0..8 {
                whole[i] ^= 1 << bit;
                let _ = frame::read(&whole[..], 3);
                whole[i] ^= 1 << bit;
            }
        }
    }
    let announced = [&[1][..], &u64::MAX.to_le_bytes()].concat();
    assert!(frame::read(&announced[..], 3).is_err());
}
