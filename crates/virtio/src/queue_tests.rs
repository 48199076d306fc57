//! A queue by itself.

use std::io::{Read, Write};

use super::*;
use crate::testing::{Memory, NEXT, RINGS, WRITE};

fn queue(memory: &Memory, features: Features) -> Queue {
    let setup = Setup {
        addresses: RINGS,
        ready: true,
        ..Setup::new(4)
    };
    let space = umbra_slots::DmaSpace::new(memory.space.clone(), Memory::new());
    let event = Arc::new(Event::new().unwrap());
    Queue::new(3, &setup, features, &space.memory(), event).unwrap()
}

fn describe(memory: &Memory, index: u64, at: u64, len: u32, flags: u16, next: u16) {
    let mut bytes = at.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    memory.put(RINGS[0] + 16 * index, &bytes);
}

#[test]
fn buffers_of_a_chain_are_those_of_now() {
    let memory = Memory::new();
    let mut queue = queue(&memory, Features::NONE);
    let view = memory.dma().memory();
    describe(&memory, 0, 0x2000, 3, NEXT, 1);
    describe(&memory, 1, u64::MAX, 0, WRITE, 0);
    offer(&memory, &[0]);
    let chain = queue.pop(&view).unwrap().unwrap();
    let buffer = |at, len, is_writable| ChainBuffer {
        at: Gpa(at),
        len,
        is_writable,
    };
    let expected = [buffer(0x2000, 3, false), buffer(u64::MAX, 0, true)];
    assert_eq!(chain.buffers().unwrap(), expected);
    // The guest turns them round, then into a loop.
    describe(&memory, 0, 0x2000, 3, NEXT | WRITE, 1);
    describe(&memory, 1, 0x3000, 9, 0, 0);
    let error = chain.buffers().unwrap_err();
    assert!(matches!(error, QueueError::Order { head: 0 }), "{error}");
    describe(&memory, 1, 0x3000, 9, NEXT | WRITE, 0);
    let error = chain.buffers().unwrap_err();
    assert!(matches!(error, QueueError::Endless { head: 0 }), "{error}");
}

fn offer(memory: &Memory, heads: &[u16]) {
    for (slot, head) in (0..).zip(heads) {
        memory.put(RINGS[1] + 4 + 2 * (slot % 4), &head.to_le_bytes());
    }
    memory.put(RINGS[1] + 2, &(heads.len() as u16).to_le_bytes());
}

#[test]
fn a_chain_is_taken_given_back_and_taken_again() {
    let memory = Memory::new();
    let mut queue = queue(&memory, Features::NONE);
    let view = memory.dma().memory();
    assert!(queue.pop(&view).unwrap().is_none());
    describe(&memory, 2, 0x2000, 3, NEXT, 1);
    describe(&memory, 1, 0x3000, 9, WRITE, 0);
    memory.put(0x2000, b"abc");
    offer(&memory, &[2]);
    for _ in 0..2 {
        let chain = queue.pop(&view).unwrap().unwrap();
        assert_eq!(chain.head(), 2);
        let mut text = String::new();
        chain.reader().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((&text[..], queue.state().next_avail), ("abc", 1));
        queue.unpop();
    }
    let chain = queue.pop(&view).unwrap().unwrap();
    chain.writer().unwrap().write_all(b"12").unwrap();
    queue.push(&view, chain.head(), 2).unwrap();
    assert!(queue.needs_interrupt(&view).unwrap());
    assert!(queue.pop(&view).unwrap().is_none());
    assert_eq!(memory.get(RINGS[2] + 2), [1, 0, 2, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!((queue.index(), queue.event().take()), (3, false));
}

#[test]
fn a_driver_notifies_only_when_it_is_asked_to() {
    let memory = Memory::new();
    let mut queue = queue(&memory, Features::NONE);
    let view = memory.dma().memory();
    assert!(!queue.expect(&view, Notifications::Unwanted).unwrap());
    assert_eq!(memory.get_u16(RINGS[2]), 1);
    assert!(!queue.expect(&view, Notifications::Wanted).unwrap());
    assert_eq!(memory.get_u16(RINGS[2]), 0);
    offer(&memory, &[0]);
    assert!(queue.expect(&view, Notifications::Wanted).unwrap());
}

#[test]
fn serving_ends_after_one_round_or_with_the_first_chain_that_is_kept() {
    let memory = Memory::new();
    let mut queue = queue(&memory, Features::NONE);
    let view = memory.dma().memory();
    let interrupts = Arc::new(std::sync::atomic::AtomicU32::new(0));
    struct Count(Arc<std::sync::atomic::AtomicU32>);
    impl crate::Wire for Count {
        fn used_buffers(&self, queue: u16) {
            assert_eq!(queue, 3);
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn config_changed(&self) {}
    }
    let interrupt = Interrupt::new(Box::new(Count(interrupts.clone())));
    offer(&memory, &[0, 1, 2, 3]);
    let mut heads = Vec::new();
    let mut each = |chain: &Chain<'_>| {
        heads.push(chain.head());
        Ok::<_, QueueError>((heads.len() != 3).then_some(0))
    };
    let served = queue.serve(&view, &interrupt, &mut each);
    assert_eq!(served.unwrap(), Served::Kept);
    assert_eq!(interrupts.load(Ordering::Relaxed), 1);
    let served = queue.serve(&view, &interrupt, &mut each);
    assert_eq!(served.unwrap(), Served::All);
    assert_eq!(heads, [0, 1, 2, 2, 3]);
    offer(&memory, &[0, 1, 2, 3, 0, 1, 2, 3]);
    let served = queue.serve(&view, &interrupt, |_| Ok::<_, QueueError>(Some(0)));
    assert_eq!(served.unwrap(), Served::More, "a whole round");
    let served = queue.serve(&view, &interrupt, |_| Ok::<_, QueueError>(Some(0)));
    assert_eq!(served.unwrap(), Served::All);
    assert_eq!(interrupts.load(Ordering::Relaxed), 3, "none for nothing");
}

#[test]
fn an_error_says_what_the_driver_did() {
    let memory = Memory::new();
    let view = memory.dma().memory();
    let error = |heads: &[u16]| {
        let mut queue = queue(&memory, Features::NONE);
        offer(&memory, heads);
        queue.pop(&view).unwrap_err().to_string()
    };
    describe(&memory, 0, 0, 0, NEXT, 0);
    assert_eq!(error(&[7]), "a chain begins at descriptor 7 of 4");
    assert!(error(&[0]).starts_with("the chain at descriptor 0 loops"));
    assert_eq!(error(&[0; 5]), "the rings cannot be used");
}

#[test]
fn several_chains_are_given_in_one_step_around_the_end_of_the_ring() {
    let memory = Memory::new();
    let mut queue = queue(&memory, Features::EVENT_IDX);
    let view = memory.dma().memory();
    queue.push_all(&view, &[]).unwrap();
    queue.push_all(&view, &[(1, 10), (2, 20), (3, 30)]).unwrap();
    assert_eq!(memory.get_u16(RINGS[2] + 2), 3);
    queue.push_all(&view, &[(0, 40), (1, 50), (2, 60)]).unwrap();
    assert_eq!(memory.get_u16(RINGS[2] + 2), 6);
    let elements: Vec<(u32, u32)> = (0..4)
        .map(|n| RINGS[2] + 4 + 8 * n)
        .map(|at| (memory.get_u32(at), memory.get_u32(at + 4)))
        .collect();
    assert_eq!(elements, [(1, 50), (2, 60), (3, 30), (0, 40)]);
}

#[test]
fn the_driver_hears_when_the_index_that_it_names_is_among_what_was_pushed() {
    // What it waits for, how many are pushed at a time, and after which of these it hears.
    let table: [(u16, &[u16], &[bool]); 5] = [
        (0, &[1, 1], &[true, false]),
        (2, &[1, 1, 1, 1], &[false, false, true, false]),
        (2, &[2, 3, 1], &[false, true, false]),
        (5, &[3, 3], &[false, true]),
        (9, &[3, 3], &[false, false]),
    ];
    for (waits_for, pushes, expected) in table {
        let memory = Memory::new();
        let mut queue = queue(&memory, Features::EVENT_IDX);
        let view = memory.dma().memory();
        // Behind the four entries of the available ring.
        memory.put(RINGS[1] + 4 + 2 * 4, &u16::to_le_bytes(waits_for));
        let heard: Vec<bool> = pushes
            .iter()
            .map(|count| {
                let used = vec![(0, 0); usize::from(*count)];
                queue.push_all(&view, &used).unwrap();
                queue.needs_interrupt(&view).unwrap()
            })
            .collect();
        assert_eq!(heard, expected, "{waits_for} {pushes:?}");
        assert!(!queue.needs_interrupt(&view).unwrap(), "for nothing");
    }
}

/// Writes down what it hears.
#[derive(Clone, Default)]
struct Diary(Arc<parking_lot::Mutex<Vec<String>>>);

impl Diary {
    fn write(&self, line: String) {
        self.0.lock().push(line);
    }

    fn read(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl Journal for Diary {
    fn taken(&mut self, head: u16) {
        self.write(format!("taken {head}"));
    }

    fn taken_back(&mut self) {
        self.write("taken back".to_owned());
    }

    fn giving(&mut self, heads: &mut dyn Iterator<Item = u16>) {
        self.write(format!("giving {:?}", heads.collect::<Vec<_>>()));
    }

    fn given(&mut self, used: u16) {
        self.write(format!("given {used}"));
    }
}

#[test]
fn a_journal_hears_what_becomes_of_every_chain() {
    let memory = Memory::new();
    let (mut queue, diary) = (queue(&memory, Features::NONE), Diary::default());
    let view = memory.dma().memory();
    queue.keep(Box::new(diary.clone()), Vec::new());
    for index in 0..4 {
        describe(&memory, index, 0x2000, 3, 0, 0);
    }
    offer(&memory, &[3, 1, 2]);
    for _ in 0..3 {
        queue.pop(&view).unwrap().unwrap();
    }
    queue.unpop();
    assert_eq!(
        diary.read(),
        ["taken 3", "taken 1", "taken 2", "taken back"]
    );
    queue.push_all(&view, &[(1, 0), (3, 0)]).unwrap();
    assert_eq!(diary.read(), ["giving [1, 3]", "given 2"]);
    assert_eq!(queue.pop(&view).unwrap().unwrap().head(), 2);
}

#[test]
fn chains_of_a_device_before_are_taken_first_and_can_go_back() {
    let memory = Memory::new();
    let (mut queue, diary) = (queue(&memory, Features::NONE), Diary::default());
    let view = memory.dma().memory();
    for index in 0..4 {
        describe(&memory, index, 0x2000 + index, 3, 0, 0);
    }
    queue.keep(Box::new(diary.clone()), vec![2, 0]);
    // The entries of the ring are not theirs any more.
    offer(&memory, &[3, 1]);
    let taken = |queue: &mut Queue| {
        let chain = queue.pop(&view).unwrap().unwrap();
        let buffers = chain.buffers().unwrap();
        assert_eq!(buffers[0].at.0, 0x2000 + u64::from(chain.head()));
        chain.head()
    };
    assert_eq!([taken(&mut queue), taken(&mut queue)], [2, 0]);
    queue.unpop();
    queue.unpop();
    assert_eq!([taken(&mut queue), taken(&mut queue)], [2, 0]);
    assert_eq!([taken(&mut queue), taken(&mut queue)], [3, 1]);
    for _ in 0..3 {
        queue.unpop();
    }
    assert_eq!((queue.state().next_avail, queue.left_again()), (0, 1));
    let all = [(); 3].map(|()| taken(&mut queue));
    assert_eq!(all, [0, 3, 1]);
    assert!(queue.pop(&view).unwrap().is_none());
    let expected = [
        "taken 3",
        "taken 1",
        "taken back",
        "taken back",
        "taken 3",
        "taken 1",
    ];
    assert_eq!(diary.read(), expected);
    queue.push(&view, 0, 7).unwrap();
    assert_eq!(
        (memory.get_u16(RINGS[2] + 2), memory.get_u32(RINGS[2] + 4)),
        (1, 0)
    );
}

#[test]
fn what_is_no_chain_cannot_be_taken_again() {
    let memory = Memory::new();
    let view = memory.dma().memory();
    describe(&memory, 1, 0x2000, 3, NEXT, 1);
    for (head, why) in [(4, "begins at descriptor 4"), (1, "loops")] {
        let mut queue = queue(&memory, Features::NONE);
        queue.keep(Box::new(Diary::default()), vec![head]);
        let error = queue.pop(&view).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn a_queue_goes_on_where_another_was() {
    let memory = Memory::new();
    let view = memory.dma().memory();
    let place = Place {
        max: 8,
        size: 4,
        addresses: RINGS,
        next_avail: 0xffff,
        next_used: 0xfffe,
    };
    let make = |place: &Place| {
        let event = Arc::new(Event::new().unwrap());
        Queue::at(0, place, Features::NONE, &view, event)
    };
    describe(&memory, 1, 0x2000, 3, 0, 0);
    memory.put(RINGS[1] + 4 + 2 * 3, &1u16.to_le_bytes());
    memory.put(RINGS[1] + 2, &0u16.to_le_bytes());
    let mut queue = make(&place).unwrap();
    assert_eq!(queue.pop(&view).unwrap().unwrap().head(), 1);
    queue.push(&view, 1, 5).unwrap();
    assert_eq!(memory.get_u16(RINGS[2] + 2), 0xffff);
    assert_eq!(memory.get_u32(RINGS[2] + 4 + 8 * 2), 1);
    let wrong = [
        Place { size: 0, ..place },
        Place { size: 3, ..place },
        Place { size: 16, ..place },
        Place {
            size: 1 << 16,
            ..place
        },
        Place { max: 3, ..place },
        Place {
            addresses: [RINGS[0] + 8, RINGS[1], RINGS[2]],
            ..place
        },
        Place {
            addresses: [RINGS[0], RINGS[1] + 1, RINGS[2]],
            ..place
        },
        Place {
            addresses: [RINGS[0], RINGS[1], RINGS[2] + 2],
            ..place
        },
        Place {
            addresses: [RINGS[0], RINGS[1], !3],
            ..place
        },
        Place {
            addresses: [RINGS[0], crate::testing::RAM - 4, RINGS[2]],
            ..place
        },
    ];
    for place in wrong {
        assert!(make(&place).is_err(), "{place:?}");
    }
}
