package maillog

import "container/list"

// recent is a map of bounded size: what was put longest ago goes first.
type recent[K comparable, V any] struct {
	limit int
	items map[K]*list.Element
	order *list.List // of item[K, V], the oldest first
}

type item[K comparable, V any] struct {
	key   K
	value V
}

func newRecent[K comparable, V any](limit int) *recent[K, V] {
	return &recent[K, V]{limit: limit, items: map[K]*list.Element{}, order: list.New()}
}

func (r *recent[K, V]) get(key K) (value V, ok bool) {
	e := r.items[key]
	if e == nil {
		return value, false
	}
	return e.Value.(item[K, V]).value, true
}

// put keeps value as the newest. It returns the one that had to go for it, if any.
func (r *recent[K, V]) put(key K, value V) (gone V, full bool) {
	if e := r.items[key]; e != nil {
		e.Value = item[K, V]{key, value}
		r.order.MoveToBack(e)
		return gone, false
	}
	if len(r.items) >= r.limit {
		oldest := r.order.Remove(r.order.Front()).(item[K, V])
		delete(r.items, oldest.key)
		gone, full = oldest.value, true
	}
	r.items[key] = r.order.PushBack(item[K, V]{key, value})
	return gone, full
}

func (r *recent[K, V]) remove(key K) {
	if e := r.items[key]; e != nil {
		r.order.Remove(e)
		delete(r.items, key)
	}
}
