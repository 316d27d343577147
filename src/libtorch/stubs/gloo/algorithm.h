// See common/error.h.

#pragma once
