// The difference of two configurations, as a plan of what is done to each client. Pure.

package procman

// An Action is what a new configuration does to one client.
type Action string

const (
	ActKeep    Action = "keep"    // nothing changed: its process is not touched
	ActLive    Action = "live"    // the change is applied to the running client
	ActStart   Action = "start"   // it is new: started if autostart is set
	ActStop    Action = "stop"    // it is gone: stopped
	ActRestart Action = "restart" // its process is replaced, if it has one
)

// A Row is one client of a Plan. Why has the changed keys, as clients.toml names them.
type Row struct {
	Name   string
	Action Action
	Why    []string
}

// A Plan has a row for every client of either configuration: first the removed in the old order, then the new order.
type Plan []Row

// Diff compares two configurations by the names of their clients. The order alone is no change.
func Diff(old, new []Spec) Plan {
	was, is := byName(old), byName(new)
	var plan Plan
	for _, s := range old {
		if _, ok := is[s.Name]; !ok {
			plan = append(plan, Row{Name: s.Name, Action: ActStop})
		}
	}
	for _, s := range new {
		row := Row{Name: s.Name, Action: ActStart}
		if o, ok := was[s.Name]; ok {
			row.Action = ActKeep
			for _, c := range changed(o, s) {
				row.Why = append(row.Why, c.key)
				if row.Action != ActRestart {
					row.Action = Action(c.class)
				}
			}
		}
		plan = append(plan, row)
	}
	return plan
}

func byName(specs []Spec) map[string]Spec {
	m := make(map[string]Spec, len(specs))
	for _, s := range specs {
		m[s.Name] = s
	}
	return m
}
