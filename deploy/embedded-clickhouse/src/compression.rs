//! Compressed bodies, both ways: HTTP's content codings, and ClickHouse's own block format.
//!
//! A block of ClickHouse is 16 bytes of checksum (CityHash128 of version 1.0.2, low half first) over what follows: one byte
//! of method (`82` LZ4, `90` Zstandard, `02` none), the size of the block from that byte on and the size of its data
//! (two little-endian u32), and the data. A wrong checksum or size ends the request: nothing of it is run.

use std::io::{self, Read, Write};

use bytes::Bytes;

const CHECKSUM: usize = 16;
const HEADER: usize = 9;
/// No client writes blocks larger than a few MiB; ClickHouse itself refuses 1 GiB.
const LARGEST_BLOCK: usize = 256 << 20;
/// The size of the blocks that are written: ClickHouse's default.
const BLOCK: usize = 1 << 20;

/// How a body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Deflate,
    Zstd,
    Lz4,
}

impl Coding {
    /// By its name in `Content-Encoding` and `Accept-Encoding`.
    pub(crate) fn named(name: &str) -> Option<Coding> {
        match name.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Some(Coding::Gzip),
            "deflate" => Some(Coding::Deflate),
            "zstd" => Some(Coding::Zstd),
            "lz4" => Some(Coding::Lz4),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Deflate => "deflate",
            Coding::Zstd => "zstd",
            Coding::Lz4 => "lz4",
        }
    }

    /// Unpacks what is read.
    pub(crate) fn unpack<'a>(self, packed: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Coding::Gzip => Box::new(flate2::read::MultiGzDecoder::new(packed)),
            Coding::Deflate => Box::new(flate2::read::ZlibDecoder::new(packed)),
            Coding::Zstd => Box::new(zstd::stream::read::Decoder::new(packed)?),
            Coding::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(packed)),
        })
    }
}

/// What the first of these codings is that the client accepts; Zstandard and LZ4 are cheapest.
pub(crate) fn choose(accept: &str) -> Option<Coding> {
    let accepted = |coding: Coding| {
        accept.split(',').any(|entry| {
            let mut parts = entry.split(';');
            let named = parts.next().and_then(Coding::named) == Some(coding);
            let refused = parts.any(|p| matches!(p.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
            named && !refused
        })
    };
    [Coding::Zstd, Coding::Lz4, Coding::Gzip, Coding::Deflate]
        .into_iter()
        .find(|&coding| accepted(coding))
}

/// Reads ClickHouse's blocks.
pub(crate) struct BlockReader<R> {
    packed: R,
    block: Vec<u8>,
    at: usize,
}

impl<R: Read> BlockReader<R> {
    pub(crate) fn new(packed: R) -> Self {
        BlockReader {
            packed,
            block: Vec::new(),
            at: 0,
        }
    }

    /// Reads the next block; false at the end.
    fn next_block(&mut self) -> io::Result<bool> {
        let mut head = [0; CHECKSUM + HEADER];
        let got = read_as_much(&mut self.packed, &mut head)?;
        if got == 0 {
            return Ok(false);
        }
        if got < head.len() {
            return Err(broken("a compressed block is cut off"));
        }
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        let (packed_size, size) = (number(CHECKSUM + 1), number(CHECKSUM + 5));
        if !(HEADER..=LARGEST_BLOCK).contains(&packed_size) || size > LARGEST_BLOCK {
            return Err(broken(
                "a compressed block claims an impossible size: is the body compressed at all?",
            ));
        }
        let mut packed = vec![0; packed_size];
        packed[..HEADER].copy_from_slice(&head[CHECKSUM..]);
        if read_as_much(&mut self.packed, &mut packed[HEADER..])? < packed_size - HEADER {
            return Err(broken("a compressed block is cut off"));
        }
        if checksum(&packed) != head[..CHECKSUM] {
            return Err(broken("Checksum doesn't match: corrupted data"));
        }
        self.at = 0;
        self.block = unpack_block(packed[0], &packed[HEADER..], size)?;
        Ok(true)
    }
}

fn unpack_block(method: u8, packed: &[u8], size: usize) -> io::Result<Vec<u8>> {
    let block = match method {
        0x82 => lz4_flex::block::decompress(packed, size).map_err(|e| broken(&e.to_string()))?,
        0x90 => zstd::bulk::decompress(packed, size)?,
        0x02 => packed.to_vec(),
        other => return Err(broken(&format!("Unknown compression method: {other:#04x}"))),
    };
    if block.len() == size {
        Ok(block)
    } else {
        Err(broken("a compressed block has another size than it claims"))
    }
}

impl<R: Read> Read for BlockReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let rest = &self.block[self.at..];
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

fn broken(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn read_as_much(from: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < out.len() {
        match from.read(&mut out[got..]) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

fn checksum(block: &[u8]) -> [u8; CHECKSUM] {
    cityhash_rs::cityhash_102_128(block).rotate_right(64).to_le_bytes()
}

/// Writes data as a block of ClickHouse.
fn write_block(data: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let packed = lz4_flex::block::compress(data);
    let size = |count: usize| {
        u32::try_from(count)
            .map(u32::to_le_bytes)
            .map_err(|_| broken("a block is too large"))
    };
    let mut block = Vec::with_capacity(HEADER + packed.len());
    block.push(0x82);
    block.extend_from_slice(&size(HEADER + packed.len())?);
    block.extend_from_slice(&size(data.len())?);
    block.extend_from_slice(&packed);
    out.extend_from_slice(&checksum(&block));
    out.extend_from_slice(&block);
    Ok(())
}

/// Packs a response piece by piece. What a piece yields can be unpacked as soon as it is there.
pub(crate) enum Packer {
    Plain,
    Blocks,
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Deflate(flate2::write::ZlibEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Lz4(Box<lz4_flex::frame::FrameEncoder<Vec<u8>>>),
}

impl Packer {
    pub(crate) fn new(coding: Option<Coding>, blocks: bool) -> io::Result<Packer> {
        let level = flate2::Compression::new(3);
        Ok(match coding {
            _ if blocks => Packer::Blocks,
            None => Packer::Plain,
            Some(Coding::Gzip) => Packer::Gzip(flate2::write::GzEncoder::new(Vec::new(), level)),
            Some(Coding::Deflate) => Packer::Deflate(flate2::write::ZlibEncoder::new(Vec::new(), level)),
            Some(Coding::Zstd) => Packer::Zstd(zstd::stream::write::Encoder::new(Vec::new(), 1)?),
            Some(Coding::Lz4) => Packer::Lz4(Box::new(lz4_flex::frame::FrameEncoder::new(Vec::new()))),
        })
    }

    /// Packs a piece.
    pub(crate) fn pack(&mut self, piece: Bytes) -> io::Result<Bytes> {
        fn through<W: Write>(to: &mut W, piece: &[u8], inner: impl Fn(&mut W) -> &mut Vec<u8>) -> io::Result<Bytes> {
            to.write_all(piece)?;
            to.flush()?;
            Ok(std::mem::take(inner(to)).into())
        }
        if piece.is_empty() {
            return Ok(piece);
        }
        match self {
            Packer::Plain => Ok(piece),
            Packer::Blocks => {
                let mut out = Vec::new();
                for block in piece.chunks(BLOCK) {
                    write_block(block, &mut out)?;
                }
                Ok(out.into())
            }
            Packer::Gzip(to) => through(to, &piece, |w| w.get_mut()),
            Packer::Deflate(to) => through(to, &piece, |w| w.get_mut()),
            Packer::Zstd(to) => through(to, &piece, |w| w.get_mut()),
            Packer::Lz4(to) => through(to.as_mut(), &piece, |w| w.get_mut()),
        }
    }

    /// What ends the response.
    pub(crate) fn finish(self) -> io::Result<Bytes> {
        Ok(match self {
            Packer::Plain | Packer::Blocks => Bytes::new(),
            Packer::Gzip(to) => to.finish()?.into(),
            Packer::Deflate(to) => to.finish()?.into(),
            Packer::Zstd(to) => to.finish()?.into(),
            Packer::Lz4(to) => to.finish().map_err(io::Error::other)?.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unpacked(coding: Option<Coding>, blocks: bool, packed: &[u8]) -> Vec<u8> {
        let mut reader: Box<dyn Read + Send> = match coding {
            _ if blocks => Box::new(BlockReader::new(packed)),
            None => Box::new(packed),
            Some(coding) => coding.unpack(packed).expect("a reader"),
        };
        let mut out = Vec::new();
        reader.read_to_end(&mut out).expect("whole");
        out
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..5)) {
            let all: Vec<u8> = pieces.concat();
            let codings = [None, Some(Coding::Gzip), Some(Coding::Deflate), Some(Coding::Zstd), Some(Coding::Lz4)];
            for (coding, blocks) in codings.into_iter().map(|c| (c, false)).chain([(None, true)]) {
                let mut packer = Packer::new(coding, blocks).expect("a packer");
                let mut packed = Vec::new();
                for piece in &pieces {
                    packed.extend(packer.pack(piece.clone().into()).expect("packed"));
                }
                packed.extend(packer.finish().expect("finished"));
                prop_assert_eq!(&unpacked(coding, blocks, &packed), &all);
            }
        }

        #[test]
        fn broken_blocks_are_refused(mut data in proptest::collection::vec(any::<u8>(), 1..300), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let mut packed = Vec::new();
            write_block(&data, &mut packed).expect("a block");
            let at = at.index(packed.len());
            packed[at] ^= 1 << bit;
            prop_assert!(BlockReader::new(&packed[..]).read_to_end(&mut data).is_err());
            packed.truncate(at);
            prop_assert!(at == 0 || BlockReader::new(&packed[..]).read_to_end(&mut data).is_err());
        }
    }

    /// A block as ClickHouse's documentation of the protocol gives it.
    #[test]
    fn a_block_of_clickhouse_is_read() {
        let mut out = Vec::new();
        write_block(b"clickhouse clickhouse clickhouse", &mut out).expect("a block");
        assert_eq!(out[16], 0x82);
        assert_eq!(out[17..21], u32::try_from(out.len() - 16).expect("small").to_le_bytes());
        assert_eq!(out[21..25], 32_u32.to_le_bytes());
        for (method, packed) in [
            (0x90, zstd::bulk::compress(b"abc", 1).expect("packed")),
            (0x02, b"abc".to_vec()),
        ] {
            let mut block = vec![method];
            block.extend(u32::try_from(packed.len() + 9).expect("small").to_le_bytes());
            block.extend(3_u32.to_le_bytes());
            block.extend(packed);
            let whole = [checksum(&block).to_vec(), block].concat();
            assert_eq!(unpacked(None, true, &whole), b"abc");
        }
    }

    #[test]
    fn the_client_chooses() {
        assert_eq!(choose("gzip, deflate, br"), Some(Coding::Gzip));
        assert_eq!(choose("lz4"), Some(Coding::Lz4));
        assert_eq!(choose("zstd;q=0, gzip;q=0.5"), Some(Coding::Gzip));
        assert_eq!(choose("identity"), None);
    }
}
