// All contents are in cuda_on_host.h; dfdx's sources include this name.
#pragma once
