"""The relay: status and checklists of WEPPcloud runs, from Redis to very many browsers."""
