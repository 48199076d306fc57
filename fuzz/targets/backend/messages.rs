//! What a front end says: good messages, each with its file.

use umbra_fuzz::{GUARD, Source};

use crate::guest::{RAM, RINGS, SIZE, rings};

/// Where the front end has its memory.
const USER: u64 = 0x7000_0000_0000;
/// VERSION_1, PROTOCOL_FEATURES, and those of rings: EVENT_IDX, INDIRECT_DESC.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;
/// VHOST_F_LOG_ALL.
const LOG_ALL: u64 = 1 << 26;
/// All that is offered.
const PROTOCOL: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15;

pub const GET_FEATURES: u32 = 1;
pub const GET_VRING_BASE: u32 = 11;
/// A front end that begins says these, and then those of its rings.
pub const BEGIN: [u32; 6] = [1, 15, 16, 3, 2, 5];
/// What is said for each ring.
pub const RING: [u32; 7] = [8, 9, 10, 14, 13, 12, 18];

/// The file that comes with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    Nothing,
    Memory,
    /// Of the ring.
    Kick,
    Event,
    Log,
    /// The one that the back end has made, if it has.
    Inflight,
    Channel,
}

/// A message.
pub struct Message {
    pub request: u32,
    pub body: Vec<u8>,
    pub attached: Attached,
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

/// One of two regions, or all of memory.
fn region(which: u8) -> Vec<u8> {
    let (start, len) = match which % 4 {
        0 => (0, RAM / 2),
        1 => (RAM / 2, RAM / 2),
        _ => (0, RAM),
    };
    longs(&[start, len, USER + start, GUARD as u64 + start])
}

impl Message {
    /// A message as it should be, for a ring or with a number in it.
    pub fn good(request: u32, ring: usize, number: u8) -> Self {
        use Attached::{Channel, Event, Inflight, Kick, Log, Memory, Nothing};
        let index = ring as u32;
        let [table, available, used] = rings(ring).map(|at| USER + at);
        let number = u32::from(number);
        let (body, attached) = match request {
            2 if number & 1 == 1 => (longs(&[FEATURES | LOG_ALL]), Nothing),
            2 => (longs(&[FEATURES]), Nothing),
            5 => ([words(&[1, 0]), region(2)].concat(), Memory),
            6 => (longs(&[0x1000, 0]), Log),
            7 => (Vec::new(), Event),
            8 => (words(&[index, SIZE.into()]), Nothing),
            9 => (
                [
                    words(&[index, number & 1]),
                    longs(&[table, used, available, 0]),
                ]
                .concat(),
                Nothing,
            ),
            10 => (words(&[index, number & 7]), Nothing),
            11 => (words(&[index, 0]), Nothing),
            12 => (longs(&[index.into()]), Kick),
            13 | 14 => (longs(&[index.into()]), Event),
            16 => (longs(&[PROTOCOL]), Nothing),
            18 => (words(&[index, 1 - (number & 1)]), Nothing),
            21 => (Vec::new(), Channel),
            24 | 25 => {
                let body = words(&[number & 0x3f, 8, 0]);
                ([body, vec![number as u8; 8]].concat(), Nothing)
            }
            31 | 32 => {
                let shape = u32::from(SIZE) << 16 | RINGS as u32;
                let body = [longs(&[0x180, 0]), words(&[shape, 0])].concat();
                (body, if request == 32 { Inflight } else { Nothing })
            }
            37 | 38 => {
                let body = [longs(&[0]), region(number as u8)].concat();
                (body, if request == 37 { Memory } else { Nothing })
            }
            _ => (Vec::new(), Nothing),
        };
        Self {
            request,
            body,
            attached,
        }
    }

    /// Any of them.
    pub fn any(source: &mut Source<'_>) -> Self {
        let request = match source.below(16) {
            0 => u32::from(source.u8()),
            _ => source.pick(&[
                1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 21, 24, 25, 31, 32,
                34, 36, 37, 38,
            ]),
        };
        let ring = source.below(RINGS);
        Self::good(request, ring, source.u8())
    }
}
