package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/index"
	"cairn/record"
)

// TestRules: rules are read as they were written, and what is not one of ours is refused.
func TestRules(t *testing.T) {
	rules := []Rule{{Prefix: "logs/", ExpireDays: 30, NoncurrentDays: 7, KeepNewest: 3}, {AbortDays: 2, Markers: true}}
	b, err := json.Marshal(rules)
	want, rerr := os.ReadFile("testdata/lifecycle-v1.txt")
	if err != nil || rerr != nil || string(b)+"\n" != string(want) {
		t.Errorf("written is\n%s\nwant\n%s%v, %v", b, want, err, rerr)
	}
	if got, err := parseRules([]record.UserField{{Name: attrRules, Value: string(b)}}); err != nil || !slices.Equal(got, rules) {
		t.Errorf("%+v is read as %+v, %v", rules, got, err)
	}
	for _, text := range []string{"", "{}", `[{"expire_days":1,"tag":"x"}]`, `[{}]`, `[{"expire_days":1}] 1`, `[{"expire_days":-1}]`} {
		if got, err := parseRules([]record.UserField{{Name: attrRules, Value: text}}); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q is read as %+v, %v", text, got, err)
		}
	}
	if got, err := parseRules(nil); err == nil {
		t.Errorf("nothing is read as %+v", got)
	}
	for _, bad := range [][]Rule{{{}}, {{Prefix: "a"}}, {{KeepNewest: 1}}, {{NoncurrentDays: 1, KeepNewest: 101}}, {{ExpireDays: 36501}}, {{NoncurrentDays: 36501}}, {{AbortDays: 36501}},
		{{Prefix: "\xff", Markers: true}}, {{Prefix: strings.Repeat("x", 1025), Markers: true}}, make([]Rule, MaxRules+1)} {
		if err := checkRules(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: got %v, want ErrInvalid", bad, err)
		}
	}
}

// ages lets time pass, on the clock as well.
func (r *rig) ages() func(time.Duration) {
	leap := r.leaps()
	return func(d time.Duration) {
		leap.Add(int64(d))
		r.pass(d)
	}
}

// TestLifecycle walks through what expires, and what does not.
func TestLifecycle(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	leap := r.leaps()
	pass := func(d time.Duration) {
		leap.Add(int64(d))
		r.pass(d)
	}
	r.bucket("kept", record.Settings{Versioning: true, Lock: true})
	set := func(bucket string, rules ...Rule) {
		t.Helper()
		if err := r.st.SetLifecycle(ctx, bucket, rules); err != nil {
			t.Fatal(err)
		}
		if got, err := r.st.Lifecycle(ctx, bucket); err != nil || !slices.Equal(got, rules) {
			t.Errorf("rules set as %+v are %+v, %v", rules, got, err)
		}
	}
	expire := func(what string, want CollectResult) {
		t.Helper()
		for _, dry := range []bool{true, false} {
			out, err := r.st.Collect(ctx, JobOptions{DryRun: dry})
			got := CollectResult{Expired: out.Expired, ExpiredVersions: out.ExpiredVersions, ExpiredMarkers: out.ExpiredMarkers, Aborted: out.Aborted}
			if err != nil || got != want {
				t.Errorf("%s, dry run %v: %+v, %v; want %+v", what, dry, got, err, want)
			}
		}
	}
	put := func(bucket, key string) Object {
		t.Helper()
		o, err := r.sized(bucket, key, 100)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	set("main", Rule{Prefix: "logs/", ExpireDays: 10, AbortDays: 2})
	put("main", "logs/a")
	put("main", "logs/b")
	put("main", "notes")
	var ups []Upload
	for _, key := range []string{"logs/u", "logs/v", "notes-u"} {
		u, err := r.st.BeginUpload(ctx, "main", key, UploadOptions{Size: -1})
		if err != nil {
			t.Fatal(err)
		}
		ups = append(ups, u)
	}
	leap.Add(int64(3650 * day))
	expire("after a leap of the clock", CollectResult{})
	leap.Add(-int64(3650 * day))
	pass(2*day - time.Hour)
	if _, err := r.st.AppendUpload(ctx, ups[1].ID, 0, bytes.NewReader(random(1, 100))); err != nil {
		t.Fatal(err)
	}
	r.pass(2 * time.Hour)
	expire("an upload that nothing came to", CollectResult{Aborted: 1})
	if _, err := r.st.Upload(ctx, ups[0].ID); !errors.Is(err, ErrNoUpload) {
		t.Errorf("an upload that was aborted: %v", err)
	}
	pass(8*day - 2*time.Hour)
	expire("too early for objects, not for the other upload", CollectResult{Aborted: 1})
	pass(2 * time.Hour)
	expire("objects", CollectResult{Expired: 2})
	expire("a second time", CollectResult{})
	if _, _, err := r.content(Name{"main", "logs/a"}, put("main", "notes").Version); err == nil {
		t.Error("what has expired is read")
	}
	if _, err := r.st.Undelete(ctx, "main", "logs/a"); err != nil {
		t.Errorf("what has expired is not brought back: %v", err)
	}
	set("main")
	expire("without rules", CollectResult{})
	r.holds("main", "logs/a", random(100, 100))

	// Older versions: the newest stay, and those that are locked.
	set("kept", Rule{NoncurrentDays: 5, KeepNewest: 2, Markers: true})
	var vs []Object
	for range 6 {
		vs = append(vs, put("kept", "a"))
	}
	if _, err := r.st.Lock(ctx, "kept", "a", LockOptions{Version: vs[1].Version, Hold: on(true)}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.st.Lock(ctx, "kept", "a", LockOptions{Version: vs[2].Version, Retention: &Retention{record.Governance, r.st.now().Add(20 * 365 * day)}}); err != nil {
		t.Fatal(err)
	}
	put("kept", "gone")
	if _, err := r.st.Delete(ctx, "kept", "gone", Conditions{}); err != nil {
		t.Fatal(err)
	}
	expire("too early", CollectResult{})
	pass(6 * day)
	expire("versions", CollectResult{ExpiredVersions: 1})
	for i, v := range vs {
		if _, _, err := r.content(Name{"kept", "a"}, v.Version); (i == 0) != errors.Is(err, ErrNoVersion) {
			t.Errorf("version %d of 6: %v", i, err)
		}
	}
	set("kept", Rule{NoncurrentDays: 5, Markers: true})
	expire("versions, none kept", CollectResult{ExpiredVersions: 3})
	expire("the marker that nothing lies under", CollectResult{ExpiredMarkers: 1})
	expire("what is locked stays", CollectResult{})

	// Rules go with their bucket.
	r.bucket("short", record.Settings{})
	set("short", Rule{ExpireDays: 1})
	if err := r.st.DeleteBucket(ctx, "short"); err != nil {
		t.Fatal(err)
	}
	r.bucket("short", record.Settings{})
	if got, err := r.st.Lifecycle(ctx, "short"); err != nil || len(got) != 0 {
		t.Errorf("a bucket that was made again has the rules %+v, %v", got, err)
	}
	if in, err := r.st.hiddenBucket(ctx, lifecycleBucket, false); err != nil {
		t.Error(err)
	} else if err := r.st.view(func(x index.Reader) error {
		b, err := x.BucketByID(in.ID)
		if b.Versions != 1 || b.Markers != 0 {
			t.Errorf("rules are left of %d buckets, want 1", b.Versions)
		}
		return err
	}); err != nil {
		t.Error(err)
	}

	// Many versions that are locked hold up none below them.
	for i := range maxKeepNewest + 20 {
		if i == 10 {
			if err := r.st.SetBucket(ctx, "kept", record.Settings{Versioning: true, Lock: true, RetentionMode: record.Governance, RetentionDays: 300}); err != nil {
				t.Fatal(err)
			}
		}
		put("kept", "many")
	}
	pass(6 * day)
	expire("below many that are locked", CollectResult{ExpiredVersions: 10})
	if rep, err := r.st.CheckIndex(ctx); err != nil {
		t.Errorf("%v: %v", err, rep.Findings)
	}
}

// TestExpiryIsDecidedInTheLog: what has changed since it was found to expire is judged anew.
func TestExpiryIsDecidedInTheLog(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	pass := r.ages()
	r.bucket("kept", record.Settings{Versioning: true, Lock: true})
	if err := r.st.SetLifecycle(ctx, "kept", []Rule{{ExpireDays: 1, NoncurrentDays: 1, Markers: true}}); err != nil {
		t.Fatal(err)
	}
	var old, now []Object
	for i := range 4 {
		for _, list := range []*[]Object{&old, &now} {
			o, err := r.sized("kept", fmt.Sprint(i), 10)
			if err != nil {
				t.Fatal(err)
			}
			*list = append(*list, o)
		}
	}
	pass(2 * day)
	b, err := r.st.bucket("kept")
	if err != nil {
		t.Fatal(err)
	}
	c := &collection{s: r.st, out: &CollectResult{}, report: func(uint64, uint64, string) {}}
	var found []stale
	for i := range old {
		found = append(found, stale{key: fmt.Sprint(i), version: now[i].Version, count: &c.out.Expired},
			stale{key: fmt.Sprint(i), version: old[i].Version, above: now[i].Version, count: &c.out.ExpiredVersions})
	}
	found = append(found, stale{key: "3", version: old[3].Version, count: &c.out.Expired}) // it was the current one once
	// Meanwhile one is overwritten, one is held, and one is the current one again.
	if _, err := r.sized("kept", "0", 10); err != nil {
		t.Fatal(err)
	}
	if _, err := r.st.Lock(ctx, "kept", "1", LockOptions{Version: old[1].Version, Hold: on(true)}); err != nil {
		t.Fatal(err)
	}
	if err := r.st.DeleteVersion(ctx, "kept", "2", now[2].Version, false); err != nil {
		t.Fatal(err)
	}
	if err := c.expireSome(ctx, b, found); err != nil {
		t.Fatal(err)
	}
	if c.out.Expired != 2 || c.out.ExpiredVersions != 2 {
		t.Errorf("%d objects and %d versions have expired, want 2 (1, 3) and 2 (0, 3)", c.out.Expired, c.out.ExpiredVersions)
	}
	for i, there := range []bool{false, true, true, false} {
		if _, _, err := r.content(Name{"kept", fmt.Sprint(i)}, old[i].Version); (err == nil) != there {
			t.Errorf("the older version of %d: %v", i, err)
		}
	}
	if err := r.st.SetLifecycle(ctx, "kept", nil); err != nil {
		t.Fatal(err)
	}
	c.out.ExpiredVersions = 0
	if err := c.expireSome(ctx, b, []stale{{key: "0", version: now[0].Version, count: &c.out.ExpiredVersions}}); err != nil || c.out.ExpiredVersions != 0 {
		t.Errorf("without rules: %d, %v", c.out.ExpiredVersions, err)
	}
}

// TestLifecycleModel: what is left after a run is what a plain reading of the rules leaves.
func TestLifecycleModel(t *testing.T) {
	r := newRig(t)
	pass := r.ages()
	ctx := context.Background()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		name := fmt.Sprintf("kept-%d", n)
		if _, err := r.st.CreateBucket(ctx, name, record.Settings{Versioning: rapid.Bool().Draw(t, "versioning")}); err != nil {
			t.Fatal(err)
		}
		key := rapid.SampledFrom([]string{"a", "b/a", "b/b"})
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			var err error
			switch k := key.Draw(t, "key"); rapid.IntRange(0, 3).Draw(t, "what") {
			case 0, 1:
				_, err = r.sized(name, k, 10)
			case 2:
				_, err = r.st.Delete(ctx, name, k, Conditions{})
			case 3:
				pass(time.Duration(rapid.IntRange(1, 3).Draw(t, "days")) * day)
			}
			if err != nil && !errors.Is(err, ErrNoObject) {
				t.Fatal(err)
			}
		}
		var rules []Rule
		for range rapid.IntRange(1, 2).Draw(t, "rules") {
			rule := Rule{Prefix: rapid.SampledFrom([]string{"", "a", "b/"}).Draw(t, "prefix"), ExpireDays: uint32(rapid.IntRange(0, 5).Draw(t, "expire")),
				NoncurrentDays: uint32(rapid.IntRange(0, 5).Draw(t, "noncurrent")), Markers: rapid.Bool().Draw(t, "markers"), AbortDays: 1}
			if rule.NoncurrentDays > 0 {
				rule.KeepNewest = uint32(rapid.IntRange(0, 2).Draw(t, "keep"))
			}
			rules = append(rules, rule)
		}
		if err := r.st.SetLifecycle(ctx, name, rules); err != nil {
			t.Fatal(err)
		}
		list := func() []Object {
			page, err := r.st.List(ctx, name, ListOptions{Versions: true})
			if err != nil || page.More {
				t.Fatal(err)
			}
			return page.Objects
		}
		before := list()
		sure := time.Unix(0, r.st.believed())
		var want []string
		var at int // in the versions of the key
		for i, o := range before {
			if at++; o.Current {
				at = 0
			}
			last := i == len(before)-1 || before[i+1].Key != o.Key
			hide, drop := false, false
			for _, rule := range rules {
				if !strings.HasPrefix(o.Key, rule.Prefix) {
					continue
				}
				over := func(t time.Time, days uint32) bool { return days > 0 && sure.Sub(t) >= time.Duration(days)*day }
				hide = hide || o.Current && !o.Deleted && over(o.Modified, rule.ExpireDays)
				drop = drop || !o.Current && over(before[max(i-1, 0)].Modified, rule.NoncurrentDays) && at > int(rule.KeepNewest) || o.Current && o.Deleted && last && rule.Markers
			}
			if hide {
				want = append(want, o.Key+" marker")
			}
			if !drop {
				want = append(want, fmt.Sprint(o.Key, " ", o.Version))
			}
		}
		c := &collection{s: r.st, out: &CollectResult{}, report: func(uint64, uint64, string) {}}
		b, err := r.st.bucket(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.expireVersions(ctx, b, rules); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, o := range list() {
			if slices.ContainsFunc(before, func(b Object) bool { return b.Version == o.Version }) {
				got = append(got, fmt.Sprint(o.Key, " ", o.Version))
			} else {
				got = append(got, o.Key+" marker")
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("rules %+v at %v of %+v leave\n%v\nwant\n%v", rules, sure, before, got, want)
		}
	})
	if rep, err := r.st.CheckIndex(ctx); err != nil {
		t.Errorf("%v: %v", err, rep.Findings)
	}
}
