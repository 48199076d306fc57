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
