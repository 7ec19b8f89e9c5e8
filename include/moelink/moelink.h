/** @file moelink.h
 *  All of MoELink. */
#ifndef MOELINK_MOELINK_H
#define MOELINK_MOELINK_H

#include <moelink/base.h>
#include <moelink/version.h>
#include <moelink/log.h>
#include <moelink/device.h>
#include <moelink/group.h>
#include <moelink/memory.h>
#include <moelink/moe.h>
#include <moelink/alltoall.h>
#include <moelink/eplb.h>
#include <moelink/eplb_comm.h>
#include <moelink/eplb_transfer.h>
#include <moelink/eplb_rearrange.h>

#endif
