/* Events: marks in streams (acl_rt.h says how they behave). */
#ifndef NR_ACL_EVENT_H
#define NR_ACL_EVENT_H

/* Retires the events of a context (its handle). */
void nr_event_retire_all(const void *context);

#endif
