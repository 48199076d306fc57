//! The control queue (5.1.6.5): one command a chain, and one byte of answer.

use std::io::{Read, Write};

use umbra_net::Mac;
use umbra_virtio::{Chain, Fault, QueueError};

use super::shared::Shared;

const OK: u8 = 0;
const ERROR: u8 = 1;

/// Class and command.
const RX: u8 = 0;
const RX_LAST: u8 = 5;
const MAC: u8 = 1;
const MAC_TABLE_SET: u8 = 0;
const MAC_ADDR_SET: u8 = 1;
const MQ: u8 = 4;
const MQ_PAIRS_SET: u8 = 0;

/// No command that is known needs more.
const ARGUMENTS: usize = 8;

/// Does what a chain says; returns how many bytes were written.
pub fn obey(shared: &Shared, chain: &Chain<'_>) -> Result<u32, Fault> {
    let (mut reader, mut writer) = (chain.reader()?, chain.writer()?);
    let short = || QueueError::Short { head: chain.head() };
    if writer.available_bytes() == 0 {
        return Err(short().into());
    }
    let mut command = [0; 2];
    let answer = match reader.read_exact(&mut command) {
        Ok(()) => {
            let mut arguments = [0; ARGUMENTS];
            let len = reader.available_bytes().min(ARGUMENTS);
            reader.read_exact(&mut arguments[..len])?;
            answer(shared, command, &arguments[..len])
        }
        Err(_) => ERROR,
    };
    writer.write_all(&[answer])?;
    Ok(1)
}

fn answer(shared: &Shared, [class, command]: [u8; 2], arguments: &[u8]) -> u8 {
    let done = match (class, command) {
        (RX, 0..=RX_LAST) => !arguments.is_empty(),
        // What is not filtered needs no table.
        (MAC, MAC_TABLE_SET) => true,
        (MAC, MAC_ADDR_SET) => match arguments.first_chunk() {
            // An address of several, or of nobody, is none of an interface.
            Some(mac) if mac[0] & 1 == 0 && *mac != [0; 6] => {
                shared.set_mac(Mac(*mac));
                true
            }
            _ => false,
        },
        (MQ, MQ_PAIRS_SET) => match arguments
            .first_chunk()
            .map(|bytes| u16::from_le_bytes(*bytes))
        {
            Some(count) if (1..=shared.pairs()).contains(&usize::from(count)) => {
                shared.use_pairs(count);
                true
            }
            _ => false,
        },
        _ => false,
    };
    if done { OK } else { ERROR }
}
