// The form for the key, as soon as the server requires one.

import { byId } from "./dom.js";
import { fetchModel, canBeSent, onKeyMissing, useKey } from "./requests.js";

/** Watches for responses that miss a key; `accepted` is called when the server took one. */
export function listenForKey(accepted) {
  const [form, field, wrong] = [byId("key-form"), byId("key"), byId("key-wrong")];
  const refuse = () => {
    wrong.hidden = false;
    field.select();
  };
  onKeyMissing((wasSent) => {
    form.hidden = false;
    wrong.hidden = !wasSent;
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const key = field.value.trim();
    if (!canBeSent(key)) return refuse();
    useKey(key);
    try {
      await fetchModel();
    } catch (error) {
      if (error.status === 401) {
        useKey(null);
        return refuse();
      }
    }
    field.value = "";
    form.hidden = true;
    accepted();
  });
}
