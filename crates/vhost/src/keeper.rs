//! The thread that watches a back end: hears what it asks for, sees it go, and finds it again.
//!
//! ```text
//!   connected   poll(stop, lost, connection hangs up, back end faults, back end asks)
//!                 config changed   read it; tell the driver if it is another one
//!                 hung up, faults  lost; look for it
//!   lost        connect, every 10 ms at first, then every 50: it is found within 100 ms of coming back
//!                 it offers what the driver has agreed on: the relay begins anew
//! ```
//! One that is lost over and over a moment after it was found (it does not take what it is told, say) is left
//! alone for longer each time, up to a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use umbra_virtio::Event;

use crate::channel::Channel;
use crate::pace::millis;
use crate::user::Shared;
use crate::{BackEndError, Deadlines};

/// How long is waited between two looks at the socket of a back end that is gone.
const SOON: Duration = millis(10);
/// The same when it has been gone for a while.
const LATER: Duration = millis(50);
/// How long it is looked for often.
const WHILE: Duration = millis(10_000);
/// How long nothing more is heard of a back end that has asked for something: one that asks without end
/// interrupts the guest a hundred times a second and no more.
const PAUSE: Duration = millis(10);

/// A connection that was shorter has not lasted.
const SHORT: Duration = millis(200);
/// The longest rest after one.
const REST: Duration = millis(1000);

/// Watches a device's back end until `stop` is signalled.
pub fn keep(shared: &Shared, deadlines: &Arc<Deadlines>, stop: &Event) {
    let (mut found, mut rest) = (Instant::now(), Duration::ZERO);
    loop {
        let go_on = match shared.link.channel() {
            Some(channel) => watch(shared, &channel, stop),
            None => {
                rest = rest_after(found.elapsed(), rest);
                let go_on = sleep(stop, rest) && find(shared, deadlines, stop);
                found = Instant::now();
                go_on
            }
        };
        if !go_on {
            return;
        }
    }
}

/// How long a back end is left alone whose connection lasted so long, after the rest before it.
fn rest_after(lasted: Duration, before: Duration) -> Duration {
    match lasted < SHORT {
        true => (before * 2).clamp(SOON, REST),
        false => Duration::ZERO,
    }
}

/// Waits for something to happen on a connection. `false` if it is time to stop.
fn watch(shared: &Shared, channel: &Arc<Channel>, stop: &Event) -> bool {
    let (hung_up, asked) = channel.with_requests(|requests| {
        let hang_up = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
        let mut watched = vec![
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(shared.link.lost(), PollFlags::IN),
            PollFd::from_borrowed_fd(channel.socket(), PollFlags::RDHUP),
            PollFd::new(&**shared.link.fault(), PollFlags::IN),
        ];
        watched.extend(requests.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let short = Timespec::try_from(SHORT).expect("it is a fraction of a second");
        let patience = (!shared.link.has_lasted()).then_some(&short);
        // After a signal, or without memory, it is looked again.
        let _ = poll(&mut watched, patience);
        let asked = watched.get(4).is_some_and(|fd| !fd.revents().is_empty());
        (watched[2].revents().intersects(hang_up), asked)
    });
    if stop.take() {
        return false;
    }
    if !hung_up {
        shared.link.lasts(SHORT);
    }
    shared.link.lost().take();
    if hung_up {
        shared.link.lose(channel, &BackEndError::Closed);
        return true;
    }
    if shared.link.fault().take() {
        shared.link.lose(channel, &BackEndError::Faulted);
        return true;
    }
    if !asked {
        return true;
    }
    if let Err(error) = hear(shared, channel) {
        shared.link.lose(channel, &error);
    }
    sleep(stop, PAUSE)
}

/// Does what the back end asks for.
fn hear(shared: &Shared, channel: &Channel) -> Result<(), BackEndError> {
    if channel.take_requests()?.config_changed {
        shared.refresh_config(channel)?;
    }
    Ok(())
}

/// Looks for the back end until it is there. `false` if it is time to stop.
fn find(shared: &Shared, deadlines: &Arc<Deadlines>, stop: &Event) -> bool {
    let begin = Instant::now();
    loop {
        match shared.connect(deadlines) {
            Ok(channel) => {
                shared.link.set(channel);
                return true;
            }
            // It is just not there.
            Err(BackEndError::Connect { .. }) => {}
            Err(error) => shared.link.not_found(&error),
        }
        let pause = match begin.elapsed() < WHILE {
            true => SOON,
            false => LATER,
        };
        if !sleep(stop, pause) {
            return false;
        }
    }
}

/// Sleeps, unless it is time to stop: then it returns `false`.
fn sleep(stop: &Event, time: Duration) -> bool {
    let timeout = Timespec::try_from(time).expect("it is a fraction of a second");
    // After a signal it has slept less.
    let _ = poll(&mut [PollFd::new(stop, PollFlags::IN)], Some(&timeout));
    !stop.take()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_lost_over_and_over_is_left_alone_for_longer_each_time() {
        let mut rest = Duration::ZERO;
        let mut rests = Vec::new();
        for _ in 0..10 {
            rest = rest_after(Duration::from_millis(3), rest);
            rests.push(rest.as_millis());
        }
        assert_eq!(rests[..4], [10, 20, 40, 80]);
        assert_eq!(rests[8..], [1000, 1000]);
        assert_eq!(rest_after(SHORT, rest), Duration::ZERO);
    }
}
