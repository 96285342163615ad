// Package link is what both ends of the link between a gateway and a node process
// share: calls and answers as they are sent, the contract's errors as codes, and how
// the ends prove their keys. docs/formats/node-link.md is its walk.
//
// It opens no connection and serves none: packages node/remote and node/server do.
package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"cairn/id"
	"cairn/node"
	"cairn/pack"
)

// Version is that of the requests, and the first part of their paths.
const Version = 1

// ALPN is the protocol that both ends insist on when they shake hands.
const ALPN = "cairn-link"

// Bounds of what is sent. Both ends keep to them.
const (
	SmallBody  = 64 << 10 // what is longer is no call: a shard that is put, a range that is read
	MaxBody    = 4 << 20  // bytes of a request of calls
	MaxCalls   = 256      // calls in it
	MaxAnswers = 8 << 20  // the largest possible answers to them
	MaxPage    = 4096     // entries of a list that one call asks for
	MaxLogPage = 1024     // the same of log shards
	MaxDamaged = 1000     // damaged log shards beyond what was asked for
	MaxWords   = 512      // bytes of an error's words
	MaxFile    = 1 << 20  // of a small file
	MaxHeader  = 16 << 10 // of HTTP's headers
)

// The headers of a request and an answer.
const (
	AuthorityHeader  = "Cairn-Authority"  // EPOCH WRITER
	GenerationHeader = "Cairn-Generation" // decimal
	WithinHeader     = "Cairn-Within"     // milliseconds
	RoomHeader       = "Cairn-Room"       // bytes that the answers may take
	NodeHeader       = "Cairn-Node"       // NODE RUN: whose answer it is, and the number that its process drew when it started
)

// Op is what a call asks for.
type Op uint8

const (
	OpPut Op = iota + 1
	OpRead
	OpStat
	OpVerify
	OpDelete
	OpUndelete
	OpList
	OpPromise
	OpPromised
	OpListLog
	OpWriteFile
	OpReadFile
	OpUsage
	OpSettle // no method of a node: refuse what is of an older generation, and wait until that is over
)

var opNames = [...]string{"", "put", "read", "stat", "verify", "delete", "undelete", "list", "promise", "promised", "list log", "write file", "read file", "usage", "settle"}

func (o Op) String() string {
	if int(o) < len(opNames) && o > 0 {
		return opNames[o]
	}
	return "call " + strconv.Itoa(int(o))
}

// Valid reports whether this version knows the call.
func (o Op) Valid() bool { return o >= OpPut && o <= OpSettle }

// Changes reports whether a call changes something, so that it needs an authority and a
// generation.
func (o Op) Changes() bool {
	switch o {
	case OpPut, OpDelete, OpUndelete, OpPromise, OpWriteFile, OpSettle:
		return true
	}
	return false
}

// Slow reports whether a call may take long by its nature: it travels alone.
func (o Op) Slow() bool {
	switch o {
	case OpVerify, OpList, OpListLog, OpWriteFile, OpReadFile, OpUsage, OpSettle:
		return true
	}
	return false
}

// Call is one question. Which fields it has follows from Op.
type Call struct {
	No         uint32      `cbor:"1,keyasint"`
	Op         Op          `cbor:"2,keyasint"`
	Within     uint32      `cbor:"3,keyasint,omitempty"` // milliseconds for which the asker waits
	Generation uint64      `cbor:"4,keyasint,omitempty"`
	Epoch      uint64      `cbor:"5,keyasint,omitempty"`
	Writer     id.Writer   `cbor:"6,keyasint,omitempty"`
	Why        uint8       `cbor:"7,keyasint,omitempty"`
	Pack       id.Pack     `cbor:"8,keyasint,omitempty"` // of the shard, or where a list goes on
	Index      uint8       `cbor:"9,keyasint,omitempty"`
	Instance   id.Instance `cbor:"10,keyasint,omitempty"`
	Off        int64       `cbor:"11,keyasint,omitempty"`
	Len        uint32      `cbor:"12,keyasint,omitempty"` // of what is read; of a list, how many
	From       uint64      `cbor:"13,keyasint,omitempty"`
	After      *Entry      `cbor:"14,keyasint,omitempty"`
	File       string      `cbor:"15,keyasint,omitempty"`
	Body       []byte      `cbor:"16,keyasint,omitempty"`
}

// Key is the shard that a call is about.
func (c *Call) Key() node.Key { return node.Key{Pack: c.Pack, Index: c.Index} }

// Authority is on whose word a call comes.
func (c *Call) Authority() node.Authority {
	return node.Authority{Epoch: c.Epoch, Writer: c.Writer}
}

const (
	infoSize  = 96  // bytes that an [Info] takes at most, as it is sent
	entrySize = 400 // an [Entry]
	maxReason = 200 // why a log shard is damaged
	restSize  = 2 << 10
)

// MaxAnswer is how many bytes the answer to a call may have.
func (c *Call) MaxAnswer() int {
	switch c.Op {
	case OpRead:
		return restSize + int(min(c.Len, SmallBody))
	case OpList:
		return restSize + int(min(c.Len, MaxPage))*infoSize
	case OpListLog:
		return restSize + (int(min(c.Len, MaxLogPage))+MaxDamaged)*entrySize
	case OpReadFile:
		return restSize + MaxFile
	}
	return restSize
}

// Info is [node.Info] as it is sent.
type Info struct {
	Pack     id.Pack     `cbor:"1,keyasint"`
	Index    uint8       `cbor:"2,keyasint"`
	Instance id.Instance `cbor:"3,keyasint"`
	Kind     uint8       `cbor:"4,keyasint"`
	Size     int64       `cbor:"5,keyasint"`
	Deleted  int64       `cbor:"6,keyasint,omitempty"` // nanoseconds since 1970; 0 for a live one
}

// OfInfo makes what is sent of it.
func OfInfo(i node.Info) Info {
	out := Info{Pack: i.Key.Pack, Index: i.Key.Index, Instance: i.Instance, Kind: uint8(i.Kind), Size: i.Size}
	if !i.Deleted.IsZero() {
		out.Deleted = i.Deleted.UnixNano()
	}
	return out
}

// Node is what was sent.
func (i Info) Node() node.Info {
	out := node.Info{Key: node.Key{Pack: i.Pack, Index: i.Index}, Instance: i.Instance, Kind: pack.Kind(i.Kind), Size: i.Size}
	if i.Deleted != 0 {
		out.Deleted = time.Unix(0, i.Deleted)
	}
	return out
}

// Entry is [node.Found] as it is sent: of a sound shard its header as it is kept, of a
// damaged one the position that is known of it, if any.
type Entry struct {
	Info    Info   `cbor:"1,keyasint"`
	Header  []byte `cbor:"2,keyasint,omitempty"`
	Epoch   uint64 `cbor:"3,keyasint,omitempty"`
	Seq     uint64 `cbor:"4,keyasint,omitempty"`
	Attempt uint32 `cbor:"5,keyasint,omitempty"`
	Damaged string `cbor:"6,keyasint,omitempty"` // why, of a damaged one
}

// OfFound makes what is sent of it.
func OfFound(f *node.Found) Entry {
	out := Entry{Info: OfInfo(f.Info)}
	if f.Err == nil {
		out.Header = f.Header.Append(nil)
		return out
	}
	out.Epoch, out.Seq, out.Attempt = f.Header.Epoch, f.Header.Seq, f.Header.Attempt
	out.Damaged = cut(Words(f.Err), maxReason)
	return out
}

// Node is what was sent. A sound entry whose header does not parse, or is that of
// another shard, is an error.
func (e *Entry) Node() (node.Found, error) {
	out := node.Found{Info: e.Info.Node()}
	if e.Damaged != "" {
		out.Header = pack.Header{Kind: pack.Log, Pack: e.Info.Pack, Index: e.Info.Index, Epoch: e.Epoch, Seq: e.Seq, Attempt: e.Attempt}
		if out.Header.Position() == (pack.Position{}) && e.Info.Pack.IsZero() {
			out.Header = pack.Header{}
		}
		out.Err = fmt.Errorf("%w: %s", node.ErrDamaged, e.Damaged)
		return out, nil
	}
	h, err := HeaderOf(e.Header, out.Info.Key)
	if err != nil {
		return out, err
	}
	if h.Kind != pack.Log {
		return out, fmt.Errorf("a %v shard in a list of the log", h.Kind)
	}
	out.Header = h
	return out, nil
}

// HeaderOf parses the header of a shard, which must be that one's.
func HeaderOf(b []byte, k node.Key) (pack.Header, error) {
	h, err := pack.ParseHeader(b)
	if err != nil {
		return h, err
	}
	if len(b) != pack.HeaderSize || h.Pack != k.Pack || h.Index != k.Index {
		return h, fmt.Errorf("the header of shard %v/%d where that of %v was asked for", h.Pack, h.Index, k)
	}
	return h, nil
}

// Usage is [node.Usage] as it is sent.
type Usage struct {
	Dir         string `cbor:"1,keyasint"`
	Device      uint64 `cbor:"2,keyasint"`
	Total       int64  `cbor:"3,keyasint"`
	Free        int64  `cbor:"4,keyasint"`
	LiveBytes   int64  `cbor:"5,keyasint"`
	LiveShards  int64  `cbor:"6,keyasint"`
	DeadBytes   int64  `cbor:"7,keyasint"`
	DeadShards  int64  `cbor:"8,keyasint"`
	Due         int64  `cbor:"9,keyasint"`
	SegmentFree int64  `cbor:"10,keyasint"`
	Layout      int64  `cbor:"11,keyasint"`
	Other       int64  `cbor:"12,keyasint"`
	Allocated   int64  `cbor:"13,keyasint"`
	PutMark     int64  `cbor:"14,keyasint"`
	LogMark     int64  `cbor:"15,keyasint"`
	Puts        bool   `cbor:"16,keyasint"`
	Logs        bool   `cbor:"17,keyasint"`
	Until       int64  `cbor:"18,keyasint,omitempty"` // nanoseconds since 1970
}

// OfUsage makes what is sent of it.
func OfUsage(u node.Usage) *Usage {
	out := &Usage{Dir: cut(u.Dir, MaxWords), Device: u.Device, Total: u.TotalBytes, Free: u.FreeBytes, LiveBytes: u.LiveBytes, LiveShards: u.LiveShards,
		DeadBytes: u.DeadBytes, DeadShards: u.DeadShards, Due: u.DueBytes, SegmentFree: u.SegmentFreeBytes, Layout: u.LayoutBytes, Other: u.OtherBytes,
		Allocated: u.AllocatedBytes, PutMark: u.PutMark, LogMark: u.LogMark, Puts: u.PutsAllowed, Logs: u.LogsAllow}
	if !u.Until.IsZero() {
		out.Until = u.Until.UnixNano()
	}
	return out
}

// Node is what was sent. What no disk can have is an error.
func (u *Usage) Node() (node.Usage, error) {
	const most = 1 << 62
	for _, n := range []int64{u.Total, u.Free, u.LiveBytes, u.LiveShards, u.DeadBytes, u.DeadShards, u.Due, u.SegmentFree, u.Layout, u.Other, u.Allocated, u.PutMark, u.LogMark} {
		if n < 0 || n > most {
			return node.Usage{}, fmt.Errorf("a disk of which %d bytes are something", n)
		}
	}
	out := node.Usage{Dir: cut(strings.ToValidUTF8(u.Dir, "?"), MaxWords), Device: u.Device, TotalBytes: u.Total, FreeBytes: u.Free, LiveBytes: u.LiveBytes, LiveShards: u.LiveShards,
		DeadBytes: u.DeadBytes, DeadShards: u.DeadShards, DueBytes: u.Due, SegmentFreeBytes: u.SegmentFree, LayoutBytes: u.Layout, OtherBytes: u.Other,
		AllocatedBytes: u.Allocated, PutMark: u.PutMark, LogMark: u.LogMark, PutsAllowed: u.Puts, LogsAllow: u.Logs}
	if u.Until != 0 {
		out.Until = time.Unix(0, u.Until)
	}
	return out, nil
}

// Room is [node.RoomError] as it is sent.
type Room struct {
	Dir  string `cbor:"1,keyasint"`
	Why  uint8  `cbor:"2,keyasint"`
	Free int64  `cbor:"3,keyasint"`
	Need int64  `cbor:"4,keyasint"`
}

// Result is what an answer without an error holds. Which field it is follows from the call.
type Result struct {
	Instance id.Instance `cbor:"1,keyasint,omitempty"`
	Body     []byte      `cbor:"2,keyasint,omitempty"`
	Info     *Info       `cbor:"3,keyasint,omitempty"`
	Header   []byte      `cbor:"4,keyasint,omitempty"`
	Infos    []Info      `cbor:"5,keyasint,omitempty"`
	Entries  []Entry     `cbor:"6,keyasint,omitempty"`
	Epoch    uint64      `cbor:"7,keyasint,omitempty"`
	Writer   id.Writer   `cbor:"8,keyasint,omitempty"`
	Usage    *Usage      `cbor:"9,keyasint,omitempty"`
}

// Answer is what a node says to a call.
type Answer struct {
	No     uint32 `cbor:"1,keyasint"`
	Code   Code   `cbor:"2,keyasint,omitempty"`
	Words  string `cbor:"3,keyasint,omitempty"`
	Result Result `cbor:"4,keyasint"`
	Room   *Room  `cbor:"5,keyasint,omitempty"`
}

// Hello is what a process says of itself.
type Hello struct {
	Versions []int        `json:"versions"`
	Cluster  id.Cluster   `json:"cluster"`
	Nodes    []HelloEntry `json:"nodes"`
}

// HelloEntry is a node of a process.
type HelloEntry struct {
	Node id.Node `json:"node"`
	Open bool    `json:"open"`
}

var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	// What a node is asked must be understood whole: a condition that is passed over
	// would be a change that nobody wanted.
	callMode = must(decOptions(cbor.ExtraDecErrorUnknownField).DecMode())
	ansMode  = must(decOptions(cbor.ExtraDecErrorNone).DecMode())
)

func decOptions(extra cbor.ExtraDecErrorCond) cbor.DecOptions {
	return cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		ExtraReturnErrors: extra, MaxArrayElements: 8192, MaxMapPairs: 64, MaxNestedLevels: 8}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic("link: " + err.Error())
	}
	return v
}

// AppendCall appends a call with its length before it. The body is copied.
func AppendCall(b []byte, c *Call) ([]byte, error) {
	enc, err := encMode.Marshal(c)
	if err != nil {
		return b, err
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(enc)))
	return append(b, enc...), nil
}

// ErrMalformed says that what was sent is no sequence of calls.
var ErrMalformed = errors.New("link: malformed")

// Split cuts the body of a request into calls, each still encoded.
func Split(b []byte) (out [][]byte, err error) {
	for len(b) > 0 {
		if len(b) < 4 || len(out) == MaxCalls {
			return nil, ErrMalformed
		}
		n := binary.BigEndian.Uint32(b)
		if n == 0 || uint64(n) > uint64(len(b)-4) {
			return nil, ErrMalformed
		}
		out = append(out, b[4:4+n:4+n])
		b = b[4+n:]
	}
	return out, nil
}

// ParseCall decodes one call. Its body lies in b, which it keeps. When only that fails
// which it asks for, its number is still right.
func ParseCall(b []byte) (Call, error) {
	var c Call
	if err := callMode.Unmarshal(b, &c); err != nil {
		var no struct {
			No uint32 `cbor:"1,keyasint"`
		}
		if ansMode.Unmarshal(b, &no) == nil {
			c = Call{No: no.No}
		}
		return c, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return c, nil
}

// AppendAnswer appends an answer, with its call's number and its length before it, so
// that whoever reads it knows how long it may be before it reads on.
func AppendAnswer(b []byte, a *Answer) []byte {
	enc, err := encMode.Marshal(a)
	if err != nil {
		panic("link: " + err.Error())
	}
	b = binary.BigEndian.AppendUint32(b, a.No)
	b = binary.BigEndian.AppendUint32(b, uint32(len(enc)))
	return append(b, enc...)
}

// ReadAnswer reads the next answer. most says how long the answer to a call may be, 0
// for a call that nobody asked or that has its answer. io.EOF at the end.
func ReadAnswer(r io.Reader, most func(no uint32) int) (Answer, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Answer{}, err
	}
	no, n := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
	if uint64(n) > uint64(most(no)) {
		return Answer{}, fmt.Errorf("%w: an answer of %d bytes to call %d", ErrMalformed, n, no)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return Answer{}, noEOF(err)
	}
	var a Answer
	if err := ansMode.Unmarshal(b, &a); err != nil {
		return Answer{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if a.No != no {
		return Answer{}, fmt.Errorf("%w: an answer to call %d that says %d", ErrMalformed, no, a.No)
	}
	return a, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// FormatAuthority is an authority as a header has it.
func FormatAuthority(by node.Authority) string {
	return strconv.FormatUint(by.Epoch, 10) + " " + by.Writer.String()
}

// ParseAuthority reads it.
func ParseAuthority(s string) (by node.Authority, err error) {
	epoch, writer, _ := strings.Cut(s, " ")
	if by.Epoch, err = strconv.ParseUint(epoch, 10, 64); err != nil {
		return by, fmt.Errorf("%w: authority %q", ErrMalformed, cut(s, 80))
	}
	if err := by.Writer.UnmarshalText([]byte(writer)); err != nil {
		return by, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return by, nil
}

// ShardPath is where a shard of a node is.
func ShardPath(n id.Node, k node.Key) string {
	return fmt.Sprintf("/%d/%v/shards/%v/%d", Version, n, k.Pack, k.Index)
}

// CallsPath is where the calls of a node go.
func CallsPath(n id.Node) string { return fmt.Sprintf("/%d/%v/calls", Version, n) }

// HelloPath is where a process says what it is, in every version.
const HelloPath = "/hello"

// cut shortens a string to at most n bytes, at a rune.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}
