//! The communicator over MPI, on the launchers of this machine.
//!
//! The tests start this program again under a launcher, where [`rank`] is the only test.
#![allow(clippy::unwrap_used)]

use pauc_distributed::{CommunicationError, Communicator, Launcher as Started, Mpi, StartError};
use pauc_testing::mpi::Launcher;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// The variable by which a test tells its ranks what to do.
const TASK: &str = "PAUC_TEST_TASK";

/// Starts ranks with a task.
fn start(mut command: Command, task: &str) -> Output {
    command.args(["rank", "--exact", "--ignored", "--nocapture"]).env(TASK, task).output().unwrap()
}

fn on(launcher: &Launcher, ranks: usize, task: &str) -> Output {
    start(launcher.command(ranks, &std::env::current_exe().unwrap()), task)
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
#[ignore = "a rank of a job, which the other tests start"]
fn rank() {
    let launcher = Started::detect().unwrap().expect("started by a launcher");
    let mpi = match Mpi::start(&launcher) {
        Ok(mpi) => mpi,
        Err(e) => {
            println!("error: {e}");
            std::process::exit(2);
        }
    };
    match std::env::var(TASK).unwrap().as_str() {
        "exercise" => {
            exercise(&mpi, 1000);
            let mpi = mpi.with_limit(1000);
            [0, 1, 250, 251, 5000].into_iter().for_each(|n| exercise(&mpi, n));
            mpi.finish().unwrap();
            println!("rank {} of {} is done", mpi.rank(), mpi.size());
        }
        "thread" => {
            let barrier = std::thread::scope(|scope| scope.spawn(|| mpi.barrier()).join()).unwrap();
            assert_eq!(barrier, Err(CommunicationError::Thread("barrier")));
            mpi.barrier().unwrap();
            mpi.finish().unwrap();
        }
        "abort" if mpi.rank() == 1 => mpi.abort(4),
        "exit" if mpi.rank() == 1 => std::process::exit(7),
        "drop" if mpi.rank() == 1 => {
            drop(mpi);
            std::process::exit(7)
        }
        _ => {
            let _ = mpi.barrier();
            println!("the barrier was passed");
            // The launcher ends this process; if it does not, the test fails by the time that it took.
            std::thread::sleep(Duration::from_secs(120));
        }
    }
}

/// Calls every operation with values that tell sender, receiver and position.
fn exercise(comm: &dyn Communicator, n: usize) {
    let (rank, size) = (comm.rank(), comm.size());
    let row = |from: usize, to: usize| (0..n).map(move |i| ((from * 31 + to * 17 + i) % 251) as u8);
    let mut all = vec![0; n * size];
    comm.all_gather(&row(rank, 0).collect::<Vec<_>>(), &mut all).unwrap();
    assert!(all.iter().copied().eq((0..size).flat_map(|from| row(from, 0))));
    let to_each: Vec<u8> = (0..size).flat_map(|to| row(rank, to)).collect();
    comm.exchange(&to_each, &mut all).unwrap();
    assert!(all.iter().copied().eq((0..size).flat_map(|from| row(from, rank))));
    for from in 0..size {
        let mut bytes: Vec<u8> = row(rank, 5).collect();
        comm.broadcast(&mut bytes, from).unwrap();
        assert!(bytes.into_iter().eq(row(from, 5)));
    }
    comm.barrier().unwrap();
    let messages = comm.all_gather_messages(&vec![rank as u8; rank * n]).unwrap();
    assert!(messages.into_iter().eq((0..size).map(|r| vec![r as u8; r * n])));
    assert!(comm.all_gather(&[1], &mut []).is_err() && comm.broadcast(&mut [], size).is_err());
}

#[test]
fn bytes_arrive_on_every_rank() {
    for launcher in Launcher::all("bytes_arrive_on_every_rank") {
        for ranks in [2, 3, 4] {
            let output = on(&launcher, ranks, "exercise");
            let text = text(&output);
            assert!(output.status.success(), "{launcher:?}: {text}");
            for rank in 0..ranks {
                assert!(text.contains(&format!("rank {rank} of {ranks} is done")), "{launcher:?}: {text}");
            }
        }
    }
}

/// Python's packages have the library twice: with MPICH's ABI and with the standard one, which is preferred.
#[test]
fn bytes_arrive_through_the_abi_of_mpich() {
    for launcher in Launcher::all("bytes_arrive_through_the_abi_of_mpich") {
        let Some(folder) = launcher.library_folder().filter(|_| !launcher.is_open_mpi) else { continue };
        let mut command = launcher.command(3, &std::env::current_exe().unwrap());
        command.env("PAUC_MPI", folder.join("libmpi.so.12"));
        let output = start(command, "exercise");
        let text = text(&output);
        assert!(output.status.success() && text.contains("rank 2 of 3 is done"), "{launcher:?}: {text}");
    }
}

#[test]
fn another_thread_gets_an_error() {
    for launcher in Launcher::all("another_thread_gets_an_error") {
        let output = on(&launcher, 2, "thread");
        assert!(output.status.success(), "{launcher:?}: {}", text(&output));
    }
}

#[test]
fn a_rank_that_ends_ends_the_others() {
    for launcher in Launcher::all("a_rank_that_ends_ends_the_others") {
        for (task, code) in [("abort", 4), ("exit", 7), ("drop", 7)] {
            let began = Instant::now();
            let output = on(&launcher, 3, task);
            let text = text(&output);
            // Other launchers only pass the code of an abort on.
            if launcher.is_open_mpi || task == "abort" {
                assert_eq!(output.status.code(), Some(code), "{launcher:?}, {task}: {text}");
            }
            assert!(!output.status.success(), "{launcher:?}, {task}: {text}");
            assert!(!text.contains("the barrier was passed"), "{launcher:?}, {task}: {text}");
            // The others would sleep for two minutes.
            assert!(began.elapsed() < Duration::from_secs(100), "{launcher:?}, {task}: {text}");
        }
    }
}

#[test]
fn a_library_of_another_family_is_an_error() {
    let launchers = Launcher::all("a_library_of_another_family_is_an_error");
    for (launcher, other) in launchers.iter().flat_map(|l| launchers.iter().map(move |other| (l, other))) {
        let Some(folder) = other.library_folder().filter(|_| other.is_open_mpi != launcher.is_open_mpi)
        else {
            continue;
        };
        let mut command = launcher.command(2, &std::env::current_exe().unwrap());
        command.env("PAUC_MPI", folder.join("libmpi.so.12"));
        let output = start(command, "exercise");
        let text = text(&output);
        assert!(text.contains("error: this process was started by "), "{text}");
        assert!(text.contains("libmpi.so.12, is ") && !output.status.success(), "{text}");
    }
}

#[test]
fn a_missing_library_is_an_error_that_names_the_launcher() {
    for launcher in Launcher::all("a_missing_library_is_an_error_that_names_the_launcher") {
        let mut command = launcher.command(2, &std::env::current_exe().unwrap());
        command.env("PAUC_MPI", "/nowhere/libmpi.so.40");
        let text = text(&start(command, "exercise"));
        assert!(text.contains("but no MPI library was found (/nowhere/libmpi.so.40"), "{text}");
    }
}

#[test]
fn errors_of_the_start_name_the_remedy() {
    let e = StartError::from(pauc_distributed::LauncherError::SlurmWithoutPmi(4)).to_string();
    assert!(e.contains("srun --mpi=pmix"), "{e}");
}
