package index

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"cairn/id"
	"cairn/index/kv"
	"cairn/pack"
	"cairn/record"
)

// Sentinels, beside those of package kv, which are passed on.
var (
	ErrNotFound = errors.New("not in the index")
	// ErrDivergent: a record names another state than the index is in. The index
	// has lost or invented rows, or it belongs to another log.
	ErrDivergent = errors.New("index and log disagree")
	// ErrApplied: the link, or a later one, has been applied already.
	ErrApplied = errors.New("log pack applied already")
	// ErrGap: the link does not follow on the head.
	ErrGap = errors.New("log pack does not follow on the index's head")
	// ErrRecord: a record that no index can apply, such as one that is beyond a
	// bound. It must not be logged.
	ErrRecord = errors.New("record cannot be applied")
	// ErrUnknownRecord: a kind of record that this version does not know. The
	// log is not replayed with a hole.
	ErrUnknownRecord = errors.New("record of an unknown kind")
	// ErrExport: what is loaded is no export, or not the one that was named.
	ErrExport = errors.New("the export is damaged")
	// ErrLoading: the rows of a snapshot are being loaded, or loading was cut
	// short. Such an index answers nothing, see [Index.Load].
	ErrLoading = errors.New("the index is not loaded whole")

	// ErrDamaged, ErrNewer, ErrTooBig and ErrClosed are those of package kv.
	ErrDamaged = kv.ErrDamaged
	ErrNewer   = kv.ErrNewer
	ErrTooBig  = kv.ErrTooBig
	ErrClosed  = kv.ErrClosed
)

// formatVersion is that of the set of rows as a whole; knownFormat the newest that is
// read, which only an index has in which log packs were given up.
const (
	formatVersion = 1
	knownFormat   = formatLoss
)

// Mode says what happens when a record finds something else than it names.
type Mode uint8

const (
	// Strict refuses it with [ErrDivergent] and applies nothing of the link.
	Strict Mode = iota
	// Rebuild does what the record says as far as it can be done, and reports it.
	Rebuild
)

// Mismatch is what a record in a rebuild found to be other than it names. It
// holds no object keys.
type Mismatch struct {
	Seq  uint64 // of the log pack
	Pos  uint32 // of the record; for what is no record, the number of records
	What string
}

// Config of an index. The zero value will do.
type Config struct {
	Log id.Log
	// Mismatch is told what a rebuild meets; nil: it is counted by nobody.
	Mismatch func(Mismatch)
}

// Index is an open index. Its methods may be called at the same time.
type Index struct {
	db   *kv.DB
	keys keyspace
	cfg  Config
	// writer holds a token for the one open round, recount or load.
	writer chan struct{}
	// loading: there is a loading row, and no other is to be believed.
	loading atomic.Bool
	// rebuilding is 0, or what the note of a rebuild says.
	rebuilding atomic.Uint32
	tally      tally
}

// Link is a log pack as it is applied.
type Link struct {
	Header pack.Header // the common one
	// Entries are the chunks in the pack's payload. The pack adopts them itself.
	Entries []pack.Entry
	// Prev lists the predecessor's shards; empty only in the first pack of a log.
	Prev    []Place
	Time    int64  // of the log, Unix time in nanoseconds
	Logged  uint64 // what the pack adds to Head.Logged
	Carried []Carried
	Records []record.Record
}

// Carried is a log pack that a begin pack carries: what lay at an offset of its
// payload now lies Off bytes further in the begin pack's, within Len bytes.
type Carried struct {
	Pack     id.Pack
	Off, Len uint32
}

// Open opens the index in db, which is closed by [Index.Close] from then on; after
// an error it still belongs to the caller. An empty db is an empty index.
func Open(db *kv.DB, cfg Config) (*Index, error) {
	x := &Index{db: db, keys: newKeyspace(cfg.Log), cfg: cfg, writer: make(chan struct{}, 1), tally: tally{counting: make(chan struct{}, 1)}}
	if x.cfg.Mismatch == nil {
		x.cfg.Mismatch = func(Mismatch) {}
	}
	err := db.View(func(s *kv.Snapshot) error {
		// The format before anything else: of a later one no other row can be judged.
		r := x.reader(s)
		r.key = x.keys.table(nil, tableFormat)
		v, err := r.get()
		if err == nil {
			if err := checkFormat(v); err != nil {
				return err
			}
		}
		if err := x.loadedRebuild(s); err != nil {
			return err
		}
		if err := x.loaded(s); err != nil {
			return nilIf(err, ErrLoading)
		}
		if err == ErrNotFound {
			from := x.keys.table(nil, 0)
			c := s.Cursor(from, x.keys.table(nil, tableLoading), false)
			defer c.Close()
			if c.Next() {
				return fmt.Errorf("%w: rows without their format", ErrDamaged)
			}
			return c.Err()
		}
		if err != nil {
			return err
		}
		h, err := r.Head()
		if err == nil && h.Seq == 0 {
			err = fmt.Errorf("%w: rows without a head", ErrDamaged)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open the index: %w", err)
	}
	return x, nil
}

// checkFormat reads the row that says of which version all others are. In every
// version it has the form of the first, or at least another first byte.
func checkFormat(v []byte) error {
	version := uint64(rowVersion)
	if len(v) > 0 && v[0] > rowVersion {
		version = uint64(v[0])
	} else if err := parseUints(v, "format", &version); err != nil {
		return err
	}
	if version > knownFormat {
		return fmt.Errorf("%w: rows of format %d, this build knows %d", ErrNewer, version, knownFormat)
	}
	return nil
}

// Close waits for views and for the open round to end, and closes the database.
func (x *Index) Close() error { return x.db.Close() }

func (x *Index) reader(r kv.Reader) *reader { return &reader{kv: r, keys: x.keys} }

// View runs fn on what is applied now; later links do not change what it reads.
// An error of fn is returned as it is.
func (x *Index) View(fn func(Reader) error) error {
	if x.loading.Load() {
		return ErrLoading
	}
	return x.db.View(func(s *kv.Snapshot) error { return fn(x.reader(s)) })
}

// Head is the newest link applied; of an index that is not loaded whole, none.
func (x *Index) Head() (h Head, err error) {
	err = x.View(func(r Reader) (err error) {
		h, err = r.Head()
		return err
	})
	return h, nilIf(err, ErrLoading)
}

// Sync returns once every link applied would survive a power cut.
func (x *Index) Sync() error { return x.db.Sync() }

// Damaged is the first damage that any read has met since Open, or nil.
func (x *Index) Damaged() error { return x.db.Damaged() }

// Size is the space the index takes, in bytes. It may lag.
func (x *Index) Size() (int64, error) { return x.db.Size() }

// Apply applies the link that follows on the head, in one transaction. After an
// error nothing of it is applied, unless the error is [kv.ErrUnknown].
func (x *Index) Apply(link Link, mode Mode) error {
	r, err := x.begin(link.Header.Pack, link.Header.Seq, mode)
	if err != nil {
		return err
	}
	defer r.Discard()
	for i := range link.Entries {
		if err := r.AddEntry(link.Entries[i]); err != nil {
			return err
		}
	}
	for _, rec := range link.Records {
		if err := r.Apply(rec); err != nil {
			return err
		}
	}
	return r.Commit(link)
}

// Begin opens the round in which the log pack with this ID and sequence is
// decided, once the round before has ended. It must be the head's successor:
// [ErrApplied], [ErrGap].
func (x *Index) Begin(p id.Pack, seq uint64) (*Round, error) { return x.begin(p, seq, Strict) }

func (x *Index) lock()   { x.writer <- struct{}{} }
func (x *Index) unlock() { <-x.writer }

func (x *Index) begin(p id.Pack, seq uint64, mode Mode) (*Round, error) {
	x.lock()
	if x.loading.Load() {
		x.unlock()
		return nil, ErrLoading
	}
	tx, err := x.db.Begin(context.Background())
	if err != nil {
		x.unlock()
		return nil, err
	}
	r := newRound(x, tx, p, seq, mode)
	if err := r.start(); err != nil {
		r.Discard()
		return nil, err
	}
	return r, nil
}

func newRound(x *Index, tx *kv.Tx, p id.Pack, seq uint64, mode Mode) *Round {
	return &Round{
		reader: reader{kv: tx, keys: x.keys}, x: x, tx: tx, mode: mode, pack: p, seq: seq,
		names: make(map[string]id.Bucket), buckets: make(map[id.Bucket]*bucketRow), usage: make(map[id.Pack]*usageRow),
		moved: make(map[chunkKey]struct{}), lists: make(map[chunkKey]struct{}), tallied: newTallied(),
	}
}
